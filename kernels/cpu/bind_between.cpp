// Binds what stands between two calls of attention (between.h). Making a part of a decode step checks its tensors and
// returns a function for the steps: those have neither shapes to look at nor anything to allocate. The caller keeps the
// tensors.
#include <tvm/ffi/function.h>

#include <memory>
#include <string>
#include <vector>

#include "between.h"
#include "tensors.h"

namespace questbench {
namespace {

using tvm::ffi::Function;

Norm norm_of(const Optional<TensorView>& scale, double epsilon) {
  return {data<float>(scale), static_cast<float>(epsilon)};
}

template <typename T>
Linear<T> linear_of(const T* x, int64_t rows, const TensorView& weight, const Optional<TensorView>& bias, T* y,
                    int64_t y_row) {
  return {data<T>(weight), data<T>(bias), x, y, y_row, rows, weight.size(1), weight.size(0), 1};
}

bool same_type(DLDataType a, DLDataType b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

// Letters of the shapes: B rows, I inputs, O outputs, U, V, W those of each layer, D channels of a head, R turned ones.
Function bind_enter(TensorView hidden, Optional<TensorView> scale, double epsilon, TensorView first,
                    Optional<TensorView> second, Optional<TensorView> third, Optional<TensorView> first_bias,
                    Optional<TensorView> second_bias, Optional<TensorView> third_bias, TensorView out, int64_t head_dim,
                    int64_t kv_heads, Optional<TensorView> q_scale, double q_epsilon, Optional<TensorView> k_scale,
                    double k_epsilon) {
  contract::Contract is(kBackend, "enter", hidden);
  is.tensor("hidden", hidden, contract::Type::kStored, "BI");
  is.tensor("scale", scale, contract::Type::kFloat, "I");
  is.tensor("first", first, contract::Type::kStored, "UI");
  is.tensor("first_bias", first_bias, contract::Type::kStored, "U");
  is.tensor("second", second, contract::Type::kStored, "VI");
  is.tensor("second_bias", second_bias, contract::Type::kStored, "V");
  is.tensor("third", third, contract::Type::kStored, "WI");
  is.tensor("third_bias", third_bias, contract::Type::kStored, "W");
  is.tensor("out", out, contract::Type::kStored, "BO");
  const Optional<TensorView>* weights[kMostWeights] = {nullptr, &second, &third};
  const Optional<TensorView>* biases[kMostWeights] = {&first_bias, &second_bias, &third_bias};
  int64_t outputs = first.size(0);
  for (int part = 1; part < kMostWeights; ++part)
    if (weights[part]->has_value()) outputs += weights[part]->value().size(0);
  if (outputs != out.size(1))
    is.refuse("the layers have " + std::to_string(outputs) + " outputs, and there is room for " +
              std::to_string(out.size(1)));
  const int64_t rows = hidden.size(0);
  is.at_least("rows", rows, 1), is.at_least("inputs", hidden.size(1), 1);
  if (head_dim > 0) {
    if (outputs % head_dim != 0 || kv_heads < 1 || outputs / head_dim <= 2 * kv_heads)
      is.refuse("the outputs are not queries, keys and values of heads of this size");
    for (const Optional<TensorView>* own : {&q_scale, &k_scale})
      if (own->has_value() && (own->value().ndim() != 1 || own->value().size(0) != head_dim))
        is.refuse("a norm of heads has another width than they");
    is.tensor("q_scale", q_scale, contract::Type::kFloat, "D");
    is.tensor("k_scale", k_scale, contract::Type::kFloat, "D");
  }
  const DLDataType stored = hidden.dtype();
  Function made;
  with_type(hidden, [&]<typename T>(T) {
    struct Kept {
      Enter<T> job;
      std::vector<T> normed;
      std::vector<float> arranged;
    };
    auto kept = std::make_shared<Kept>();
    kept->normed.resize(rows * hidden.size(1));
    Enter<T>& job = kept->job;
    job = {data<T>(hidden), norm_of(scale, epsilon), kept->normed.data(), {}, 0, head_dim, 0, kv_heads,
           norm_of(q_scale, q_epsilon), norm_of(k_scale, k_epsilon), nullptr};
    if (head_dim > 0) job.query_heads = outputs / head_dim - 2 * kv_heads;
    int64_t at = 0;
    for (int part = 0; part < kMostWeights; ++part) {
      if (part > 0 && !weights[part]->has_value()) continue;
      const TensorView weight = part == 0 ? first : weights[part]->value();
      job.weights[job.count++] = linear_of<T>(job.normed, rows, weight, *biases[part], data<T>(out) + at, outputs);
      at += weight.size(0);
    }
    kept->arranged.resize(arranged_size(job.weights[0]));
    job.arranged = kept->arranged.data();
    made = Function::FromTyped([kept, rows, head_dim, stored](Optional<TensorView> cos, Optional<TensorView> sin,
                                                              int64_t threads) {
      const bool turns = cos.has_value() && sin.has_value();
      int64_t turned = 0, stride = 0;
      if (head_dim > 0 && !turns) TVM_FFI_THROW(ValueError) << "enter: heads without angles";
      if (turns) {
        contract::Contract is(kBackend, "enter", cos.value());
        is.tensor("cos", cos, contract::Type::kStored, "B1R");
        is.tensor("sin", sin, contract::Type::kStored, "B1R");
        if (!same_type(cos.value().dtype(), stored) || (is.size('B') != rows && is.size('B') != 1) ||
            is.size('R') > head_dim || is.size('R') % 2 != 0)
          is.refuse("these angles do not fit the heads");
        turned = is.size('R'), stride = is.size('B') == 1 ? 0 : turned;
      }
      enter(kept->job, turns ? data<T>(cos) : nullptr, turns ? data<T>(sin) : nullptr, turned, stride,
            static_cast<int>(threads));
    });
  });
  return made;
}

// Letters: B rows, A channels of attention's output, X of the hidden state, M between gate and down.
Function bind_leave(TensorView hidden, TensorView out, Optional<TensorView> out_bias, Optional<TensorView> out_scale,
                    double out_epsilon, Optional<TensorView> mlp_scale, double mlp_epsilon, TensorView gate,
                    Optional<TensorView> gate_bias, TensorView up, Optional<TensorView> up_bias, double linear,
                    double cubic, TensorView down, Optional<TensorView> down_bias, Optional<TensorView> down_scale,
                    double down_epsilon) {
  contract::Contract is(kBackend, "leave", hidden);
  is.tensor("hidden", hidden, contract::Type::kStored, "BX");
  is.tensor("out", out, contract::Type::kStored, "XA");
  is.tensor("out_bias", out_bias, contract::Type::kStored, "X");
  is.tensor("out_scale", out_scale, contract::Type::kFloat, "X");
  is.tensor("mlp_scale", mlp_scale, contract::Type::kFloat, "X");
  is.tensor("gate", gate, contract::Type::kStored, "MX");
  is.tensor("gate_bias", gate_bias, contract::Type::kStored, "M");
  is.tensor("up", up, contract::Type::kStored, "MX");
  is.tensor("up_bias", up_bias, contract::Type::kStored, "M");
  is.tensor("down", down, contract::Type::kStored, "XM");
  is.tensor("down_bias", down_bias, contract::Type::kStored, "X");
  is.tensor("down_scale", down_scale, contract::Type::kFloat, "X");
  for (const char letter : {'B', 'X', 'A', 'M'}) is.at_least("every size", is.size(letter), 1);
  const int64_t rows = is.size('B'), width = is.size('X'), inner = is.size('M'), attended_width = is.size('A');
  const DLDataType stored = hidden.dtype();
  Function made;
  with_type(hidden, [&]<typename T>(T) {
    struct Kept {
      Leave<T> job;
      std::vector<T> normed, both, mixed, delta;
      std::vector<float> arranged_width, arranged_inner;
    };
    auto kept = std::make_shared<Kept>();
    kept->normed.resize(rows * width), kept->delta.resize(rows * width);
    kept->both.resize(2 * rows * inner), kept->mixed.resize(rows * inner);
    T *normed = kept->normed.data(), *both = kept->both.data(), *mixed = kept->mixed.data(), *delta = kept->delta.data();
    Leave<T>& job = kept->job;
    job.out = linear_of<T>(nullptr, rows, out, out_bias, delta, width);
    job.out_norm = norm_of(out_scale, out_epsilon);
    job.hidden = data<T>(hidden);
    job.mlp_norm = norm_of(mlp_scale, mlp_epsilon);
    job.normed = normed;
    job.gate = linear_of<T>(normed, rows, gate, gate_bias, both, inner);
    job.up = linear_of<T>(normed, rows, up, up_bias, both + rows * inner, inner);
    job.activation = {static_cast<float>(linear), static_cast<float>(cubic)};
    job.mixed = mixed;
    job.down = linear_of<T>(mixed, rows, down, down_bias, delta, width);
    job.down_norm = norm_of(down_scale, down_epsilon);
    job.delta = delta;
    kept->arranged_width.resize(std::max(arranged_size(job.out), arranged_size(job.gate)));
    kept->arranged_inner.resize(arranged_size(job.down));
    job.arranged_width = kept->arranged_width.data(), job.arranged_inner = kept->arranged_inner.data();
    made = Function::FromTyped([kept, rows, attended_width, stored](TensorView attended, int64_t threads) {
      contract::Contract is(kBackend, "leave", attended);
      is.tensor("attended", attended, contract::Type::kStored, "BA");
      if (is.size('B') != rows || is.size('A') != attended_width || !same_type(attended.dtype(), stored))
        is.refuse("the output of attention does not fit");
      Leave<T> job = kept->job;
      job.out.x = data<T>(attended);
      leave(job, static_cast<int>(threads));
    });
  });
  return made;
}

// Letters: B rows, Q heads, D channels, F pairs of channels that are turned.
void bind_rotate(TensorView x, TensorView delta, TensorView frequency, TensorView out) {
  contract::Contract is(kBackend, "rotate", x);
  is.tensor("x", x, contract::Type::kStored, "BQD");
  is.tensor("delta", delta, contract::Type::kInt, "B");
  is.tensor("frequency", frequency, contract::Type::kFloat, "F");
  is.tensor("out", out, contract::Type::kStored, "BQD");
  if (2 * is.size('F') > is.size('D')) is.refuse("more channels are turned than there are");
  with_type(x, [&]<typename T>(T) {
    rotate(Rotate<T>{data<T>(x), data<int32_t>(delta), data<float>(frequency), x.size(0), x.size(1), x.size(2),
                     frequency.size(0), data<T>(out)});
  });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(enter, bind_enter);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(leave, bind_leave);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rotate, bind_rotate);

}  // namespace questbench
