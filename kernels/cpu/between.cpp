// The parts of a decode step that need no cache; see between.h.
#include "between.h"

#include <initializer_list>
#include <vector>

#include "shares.h"

namespace questbench {
namespace {

// Bytes of weights below which a second thread costs more than it brings: it is waited for at every part.
constexpr int64_t kShared = 1 << 18;

template <typename T>
inline void put_lanes(Vec x, T* out) {
  float lanes[kLanes];
  store(lanes, x);
  for (int i = 0; i < kLanes; ++i) from_float(lanes[i], out + i);
}

Vec gated_lanes(Vec x, Vec up, Gate activation) {
  Vec z = x * splat(activation.linear);
  if (activation.cubic != 0.0f) z += splat(activation.cubic) * x * x * x;  // else infinity times zero
  // exp of what is not positive, so that it cannot overflow.
  const Vec power = exp_of(QB_CHOOSE(z > splat(0.0f), -z, z)), one = splat(1.0f);
  return x * (QB_CHOOSE(z > splat(0.0f), one, power) / (one + power)) * up;
}

template <typename T>
void add(T* hidden, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) put_lanes(load(hidden + i) + load(x + i), hidden + i);
  for (; i < n; ++i) from_float(to_float(hidden[i]) + to_float(x[i]), hidden + i);
}

// One gate item: the same columns of gate and up, and of what they make.
template <typename T>
void gate_item(const Leave<T>& job, int64_t item) {
  linear_item(job.gate, job.arranged_width, item);
  linear_item(job.up, job.arranged_width, item);
  const int64_t first = item * item_outputs(job.gate), inner = job.gate.outputs;
  const int64_t last = std::min(first + item_outputs(job.gate), inner);
  for (int64_t row = 0; row < job.gate.rows; ++row)
    gated(job.gate.y + row * job.gate.y_row + first, job.up.y + row * job.up.y_row + first, last - first,
          job.activation, job.mixed + row * inner + first);
}

template <typename T>
int threads_of(std::initializer_list<const Linear<T>*> jobs, int threads) {
  int64_t bytes = 0;
  for (const Linear<T>* job : jobs) bytes += weight_bytes(*job);
  return bytes < kShared ? 1 : threads;
}

}  // namespace

template <typename T>
void normalise(const T* x, int64_t n, Norm norm, T* out) {
  if (norm.scale == nullptr) {
    if (out != x) std::copy_n(x, n, out);
    return;
  }
  Vec sums = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums += load(x + i) * load(x + i);
  float sum = sum_of(sums);
  for (; i < n; ++i) sum += to_float(x[i]) * to_float(x[i]);
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(n) + norm.epsilon);
  for (i = 0; i + kLanes <= n; i += kLanes) put_lanes(load(x + i) * splat(factor) * load(norm.scale + i), out + i);
  for (; i < n; ++i) from_float(to_float(x[i]) * factor * norm.scale[i], out + i);
}

template <typename T>
void gated(const T* gate, const T* up, int64_t n, Gate activation, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) put_lanes(gated_lanes(load(gate + i), load(up + i), activation), out + i);
  if (i == n) return;
  float both[2][kLanes] = {}, lanes[kLanes];
  for (int64_t rest = i; rest < n; ++rest) {
    both[0][rest - i] = to_float(gate[rest]);
    both[1][rest - i] = to_float(up[rest]);
  }
  store(lanes, gated_lanes(load(both[0]), load(both[1]), activation));
  for (int64_t rest = i; rest < n; ++rest) from_float(lanes[rest - i], out + rest);
}

template <typename T, typename Angle>
void turn(T* x, const Angle* cos, const Angle* sin, int64_t turned) {
  const int64_t half = turned / 2;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec low = load(x + i), high = load(x + half + i);
    put_lanes(low * load(cos + i) - high * load(sin + i), x + i);
    put_lanes(high * load(cos + half + i) + low * load(sin + half + i), x + half + i);
  }
  for (; i < half; ++i) {
    const float low = to_float(x[i]), high = to_float(x[half + i]);
    from_float(low * to_float(cos[i]) - high * to_float(sin[i]), x + i);
    from_float(high * to_float(cos[half + i]) + low * to_float(sin[half + i]), x + half + i);
  }
}

template <typename T>
void rotate(const Rotate<T>& job) {
  thread_local std::vector<float> angles;
  const int64_t turned = 2 * job.pairs, head_size = job.heads * job.head_dim;
  angles.resize(2 * turned);
  float *cos = angles.data(), *sin = cos + turned;
  for (int64_t row = 0; row < job.rows; ++row) {
    for (int64_t i = 0; i < job.pairs; ++i) {
      const float angle = static_cast<float>(job.delta[row]) * job.frequency[i];
      cos[i] = cos[job.pairs + i] = std::cos(angle);
      sin[i] = sin[job.pairs + i] = std::sin(angle);
    }
    T* out = job.out + row * head_size;
    std::copy_n(job.x + row * head_size, head_size, out);
    for (int64_t head = 0; head < job.heads; ++head) turn(out + head * job.head_dim, cos, sin, turned);
  }
}

template <typename T>
void enter(const Enter<T>& job, const T* cos, const T* sin, int64_t turned, int64_t angle_stride, int threads) {
  const Linear<T>& first = job.weights[0];
  for (int64_t row = 0; row < first.rows; ++row)
    normalise(job.hidden + row * first.inputs, first.inputs, job.norm, job.normed + row * first.inputs);
  arrange_rows(first, job.arranged);
  int64_t ends[kMostWeights], items = 0, bytes = 0;
  for (int part = 0; part < job.count; ++part) {
    ends[part] = items += linear_items(job.weights[part]);
    bytes += weight_bytes(job.weights[part]);
  }
  if (bytes < kShared) threads = 1;
  Shares shares(items, threads);
#pragma omp parallel num_threads(threads)
  shares.each([&](int64_t item) {
    int part = 0;
    while (item >= ends[part]) ++part;
    linear_item(job.weights[part], job.arranged, part > 0 ? item - ends[part - 1] : item);
  });
  if (cos == nullptr) return;
  for (int64_t row = 0; row < first.rows; ++row)
    for (int64_t head = 0; head < job.query_heads + job.kv_heads; ++head) {
      T* own = first.y + row * first.y_row + head * job.head_dim;
      normalise(own, job.head_dim, head < job.query_heads ? job.q_norm : job.k_norm, own);
      turn(own, cos + row * angle_stride, sin + row * angle_stride, turned);
    }
}

template <typename T>
void leave(const Leave<T>& job, int threads) {
  const int64_t rows = job.out.rows, width = job.out.outputs;
  threads = threads_of({&job.out, &job.gate, &job.up, &job.down}, threads);
  Shares outs(linear_items(job.out), threads), gates(linear_items(job.gate), threads), downs(linear_items(job.down), threads);
  const auto add_delta = [&](Norm norm) {
    for (int64_t row = 0; row < rows; ++row) {
      normalise(job.delta + row * width, width, norm, job.delta + row * width);
      add(job.hidden + row * width, job.delta + row * width, width);
    }
  };
  arrange_rows(job.out, job.arranged_width);
#pragma omp parallel num_threads(threads)
  {
    outs.each([&](int64_t item) { linear_item(job.out, job.arranged_width, item); });
#pragma omp barrier
#pragma omp single
    {
      add_delta(job.out_norm);
      for (int64_t row = 0; row < rows; ++row)
        normalise(job.hidden + row * width, width, job.mlp_norm, job.normed + row * width);
      arrange_rows(job.gate, job.arranged_width);
    }
    gates.each([&](int64_t item) { gate_item(job, item); });
#pragma omp barrier
#pragma omp single
    arrange_rows(job.down, job.arranged_inner);
    downs.each([&](int64_t item) { linear_item(job.down, job.arranged_inner, item); });
  }
  add_delta(job.down_norm);
}

#define QB_BETWEEN(T)                                                          \
  template void normalise(const T*, int64_t, Norm, T*);                        \
  template void gated(const T*, const T*, int64_t, Gate, T*);                  \
  template void rotate(const Rotate<T>&);                                      \
  template void enter(const Enter<T>&, const T*, const T*, int64_t, int64_t, int); \
  template void leave(const Leave<T>&, int);
QB_BETWEEN(float)
QB_BETWEEN(fp16)
QB_BETWEEN(bf16)
#undef QB_BETWEEN

}  // namespace questbench
