// Activations on vectors. Include after one of the wrappers that define Simd.
#pragma once

#include "simd/target.h"
#include "sparsecore/kernel.h"

namespace sparsecore {
namespace {

// exp(x) for x <= 0, relative error below 2e-7; below -87 it is 1e-38 or less, NaN stays NaN.
// 2^n * exp(r) with |r| <= ln(2)/2 and the Taylor polynomial of degree 7 (its remainder is 5e-9).
template <class S>
SPARSECORE_INLINE typename S::F32 exp_nonpositive(typename S::F32 x) {
  const auto clamped = S::max(S::set1(-87.0f), x);
  const auto n = S::round(S::mul(clamped, S::set1(1.44269504f)));
  // ln(2) in two parts, so that n * high is exact.
  auto r = S::fma(n, S::set1(-0.693359375f), clamped);
  r = S::fma(n, S::set1(2.12194440e-4f), r);
  auto p = S::set1(1.0f / 5040.0f);
  p = S::fma(p, r, S::set1(1.0f / 720.0f));
  p = S::fma(p, r, S::set1(1.0f / 120.0f));
  p = S::fma(p, r, S::set1(1.0f / 24.0f));
  p = S::fma(p, r, S::set1(1.0f / 6.0f));
  p = S::fma(p, r, S::set1(0.5f));
  p = S::fma(p, r, S::set1(1.0f));
  p = S::fma(p, r, S::set1(1.0f));
  return S::mul(p, S::exp2_integral(n));
}

// erf(x), absolute error below 3e-7: Abramowitz & Stegun, Handbook of Mathematical Functions, eq. 7.1.26.
template <class S>
SPARSECORE_INLINE typename S::F32 erf(typename S::F32 x) {
  const auto a = S::abs(x);
  const auto t = S::div(S::set1(1.0f), S::fma(a, S::set1(0.3275911f), S::set1(1.0f)));
  auto p = S::set1(1.061405429f);
  p = S::fma(p, t, S::set1(-1.453152027f));
  p = S::fma(p, t, S::set1(1.421413741f));
  p = S::fma(p, t, S::set1(-0.284496736f));
  p = S::fma(p, t, S::set1(0.254829592f));
  const auto tail = S::mul(S::mul(p, t), exp_nonpositive<S>(S::mul(a, S::sub(S::zero(), a))));
  return S::copysign(S::sub(S::set1(1.0f), tail), x);
}

template <class S>
SPARSECORE_INLINE typename S::F32 relu6(typename S::F32 x) {
  return S::min(S::set1(6.0f), S::max(S::zero(), x));
}

template <class S>
SPARSECORE_INLINE typename S::F32 gelu(typename S::F32 x) {
  const auto half = S::mul(x, S::set1(0.5f));
  return S::fma(half, erf<S>(S::mul(x, S::set1(0.70710678f))), half);
}

// x * sigmoid(x); the sigmoid from exp(-|x|), so that nothing overflows.
template <class S>
SPARSECORE_INLINE typename S::F32 silu(typename S::F32 x) {
  const auto e = exp_nonpositive<S>(S::sub(S::zero(), S::abs(x)));
  const auto denominator = S::add(S::set1(1.0f), e);
  const auto is_negative = S::max(S::zero(), S::copysign(S::set1(1.0f), S::sub(S::zero(), x)));  // 1 or 0
  const auto numerator = S::fma(is_negative, S::sub(e, S::set1(1.0f)), S::set1(1.0f));           // e or 1
  return S::mul(x, S::div(numerator, denominator));
}

// From exp(-|x|), so that nothing overflows: 1 / (1 + e), or e / (1 + e) for negative x.
template <class S>
SPARSECORE_INLINE typename S::F32 sigmoid(typename S::F32 x) {
  const auto e = exp_nonpositive<S>(S::sub(S::zero(), S::abs(x)));
  const auto is_positive = S::max(S::zero(), S::copysign(S::set1(1.0f), x));  // 1 or 0; e is at most 1
  return S::div(S::max(is_positive, e), S::add(S::set1(1.0f), e));
}

template <class S>
SPARSECORE_INLINE typename S::F32 hardsigmoid(typename S::F32 x) {
  return S::mul(relu6<S>(S::add(x, S::set1(3.0f))), S::set1(1.0f / 6.0f));
}

template <class S>
SPARSECORE_INLINE typename S::F32 hardswish(typename S::F32 x) {
  return S::mul(x, hardsigmoid<S>(x));
}

// acc[j] = activation(acc[j]): the choice is made once for V vectors.
template <class S, int V>
SPARSECORE_INLINE void activate(typename S::F32 (&acc)[V], Activation activation) {
#define SPARSECORE_APPLY(expression) \
  SPARSECORE_UNROLL                  \
  for (int j = 0; j < V; ++j) {      \
    const auto y = acc[j];           \
    acc[j] = (expression);           \
  }                                  \
  break
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
      SPARSECORE_APPLY(S::max(S::zero(), y));
    case Activation::kRelu6:
      SPARSECORE_APPLY(relu6<S>(y));
    case Activation::kGelu:
      SPARSECORE_APPLY(gelu<S>(y));
    case Activation::kSilu:
      SPARSECORE_APPLY(silu<S>(y));
    case Activation::kHardswish:
      SPARSECORE_APPLY(hardswish<S>(y));
    case Activation::kSigmoid:
      SPARSECORE_APPLY(sigmoid<S>(y));
    case Activation::kHardsigmoid:
      SPARSECORE_APPLY(hardsigmoid<S>(y));
  }
#undef SPARSECORE_APPLY
}

// activation(acc[j] + bias).
template <class S, int V>
SPARSECORE_INLINE void apply_epilogue(typename S::F32 (&acc)[V], float bias, Activation activation) {
  const auto b = S::set1(bias);
  SPARSECORE_UNROLL
  for (int j = 0; j < V; ++j) acc[j] = S::add(acc[j], b);
  activate<S, V>(acc, activation);
}

// y[i] = activation(y[i]) for finished sums that lie in one row: the way out of dot-product kernels.
template <class S>
SPARSECORE_INLINE void activate_row(float* y, int64_t n, Activation activation) {
  if (activation == Activation::kNone) return;
  for (int64_t i = 0; i < n; i += S::kLanes) {
    const int count = static_cast<int>(n - i < S::kLanes ? n - i : S::kLanes);
    typename S::F32 acc[1] = {S::load_n(y + i, count)};
    activate<S, 1>(acc, activation);
    S::store_n(y + i, acc[0], count);
  }
}

}  // namespace
}  // namespace sparsecore
