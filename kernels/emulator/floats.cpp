// Conversions of 16-bit floats in software.
#include <cmath>

#include "runtime.h"

namespace qb::emulator {

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 31u, mantissa = half & 1023u;
  if (exponent == 31) return bits_of<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return bits_of<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t float_to_half(float value) {
  const uint32_t raw = bits_of<uint32_t>(value), magnitude = raw & 0x7fffffffu;
  const uint32_t sign = raw >> 16 & 0x8000u;
  if (magnitude > 0x7f800000u) return 0x7fff;  // what the hardware makes of any NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // subnormal: a count of 2^-24, rounded to even by the float addition
    const float shifted = bits_of<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

uint16_t float_to_bfloat16(float value) {
  const uint32_t raw = bits_of<uint32_t>(value);
  if ((raw & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((raw + 0x7fffu + (raw >> 16 & 1u)) >> 16);
}

}  // namespace qb::emulator
