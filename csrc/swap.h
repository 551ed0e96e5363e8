// Conditional swaps and their derivatives: one source for host and device.
//
// A comparator with ordered values lo <= hi and r = hi - lo puts out lo + r w and hi - r w, where
// w = f(-r; s) in [0, 1/2] is the weight of the wrong wire. Every swap is w = W(v), v = s q(r), with
// q(r) = r for all but ART. Notation: W' = dW/dv, e = d(r w)/dr = (1 - f(d)) - d f'(d) at d = r.
//
// T is a number or a Pack of them (pack.h), so conditions go through select().
//
// Infinite r never reaches these functions, but v = s r may overflow to inf: each must then give its limit
// and never inf * 0. A NaN steepness must come out as NaN: clamps are written so that NaN passes.
#pragma once

#include "approximations.h"

namespace difflayers {
inline namespace DL_ISA {

enum class SwapKind { logistic, logistic_art, gaussian, reciprocal, cauchy, optimal };

template <class T>
struct Curve {
  T w;   // W(v)
  T w1;  // W'(v)
  T x;   // v W'(v)
  T e;   // W(v) + v W'(v)
};

template <class T>
struct Curvature {
  T w2;  // W''(v)
  T y;   // v W''(v)
};

// Each swap: first(v) for the value and first derivative, second(v, first) for the second one.

struct LogisticCurve {
  template <class T>
  static DL_HD Curve<T> first(T v) {
    v = select(v > T(1000), T(1000), v);  // exp(-1000) = 0: keeps v * 0 from becoming inf * 0
    const T q = math::exp_of_minus(v);
    const T h = math::reciprocal(T(1) + q);
    const T w = q * h;
    return {w, -w * h, -v * w * h, w * (T(1) - v * h)};
  }
  template <class T>
  static DL_HD Curvature<T> second(T v, const Curve<T>& c) {
    v = select(v > T(1000), T(1000), v);  // as above
    const T w2 = -c.w1 * (T(1) - T(2) * c.w);
    return {w2, v * w2};
  }
};

struct GaussianCurve {
  template <class T>
  static DL_HD Curve<T> first(T v) {
    v = select(v > T(40), T(40), v);  // exp(-800) = 0, as in the logistic curve
    const T density = math::exp_of_minus(T(0.5) * v * v) * T(0.39894228040143267794);
    const T w = math::normal_tail(v);
    return {w, -density, -v * density, w - v * density};
  }
  template <class T>
  static DL_HD Curvature<T> second(T v, const Curve<T>& c) {
    v = select(v > T(40), T(40), v);  // as above
    return {-v * c.w1, -v * c.x};
  }
};

struct ReciprocalCurve {
  template <class T>
  static DL_HD Curve<T> first(T v) {
    const T h = math::reciprocal(T(2) + v);
    return {h, -h * h, (T(2) * h - T(1)) * h, T(2) * h * h};
  }
  template <class T>
  static DL_HD Curvature<T> second(T, const Curve<T>& c) {
    const T h = c.w;
    return {T(2) * h * h * h, T(2) * (T(1) - T(2) * h) * h * h};
  }
};

struct CauchyCurve {
  // With z = min(v, 1/v): arctan(1/v) and 1/(1 + v^2) are functions of z that neither cancel nor overflow.
  template <class T>
  static DL_HD Curve<T> first(T v) {
    const auto far = v > T(1);
    const T z = select(far, math::reciprocal(v), v);
    const T angle = math::arctan_over_pi(z);
    const T k = T(0.31830988618379067154) * math::reciprocal(T(1) + z * z);
    const T w = select(far, angle, T(0.5) - angle);
    return {w, select(far, -z * z * k, -k), -z * k, w - z * k};
  }
  template <class T>
  static DL_HD Curvature<T> second(T, const Curve<T>& c) {
    const T pi = T(3.14159265358979323846);
    return {T(2) * pi * c.x * c.w1, T(2) * pi * c.x * c.x};
  }
};

struct OptimalCurve {
  template <class T>
  static DL_HD Curve<T> first(T v) {
    const auto far = v > T(0.25);
    const T u = select(far, v, T(0.25));
    const T h = T(0.0625) * math::reciprocal(u);
    return {select(far, h, T(0.5) - v), select(far, -h / u, T(-1)), select(far, -h, -v),
            select(far, T(0), T(0.5) - T(2) * v)};
  }
  template <class T>
  static DL_HD Curvature<T> second(T v, const Curve<T>&) {
    const auto far = v > T(0.25);
    const T u = select(far, v, T(0.25));
    const T y = T(0.125) / (u * u);
    return {select(far, y / u, T(0)), select(far, y, T(0))};
  }
};

// v = s q(r). q1 and q2 are the derivatives of q; kappa = r q1 / q and kappa1 its derivative.
template <class T>
struct Scale {
  T q, q1, q2, kappa, kappa1;
};

struct Linear {
  template <class T>
  static DL_HD Scale<T> of(T r, T) {
    return {r, T(1), T(0), T(1), T(0)};
  }
};

// q(r) = r / (r + 1e-10)^lambda, the activation replacement trick with its published guard for r = 0
struct Replaced {
  template <class T>
  static DL_HD Scale<T> of(T r, T lambda) {
    const T guard = T(1e-10);
    const T inverse = T(1) / (r + guard);
    const T power = math::power(r + guard, -lambda);
    const T kappa = T(1) - lambda * r * inverse;
    return {
        r * power,
        power * kappa,
        -lambda * power * inverse * (kappa + guard * inverse),
        kappa,
        -lambda * guard * inverse * inverse,
    };
  }
};

// A number with one tangent: running the gradient on these gives the second derivative in a direction.
template <class T>
struct Dual {
  T v, t;
};

template <class T>
DL_HD Dual<T> operator+(Dual<T> a, Dual<T> b) {
  return {a.v + b.v, a.t + b.t};
}
template <class T>
DL_HD Dual<T> operator-(Dual<T> a, Dual<T> b) {
  return {a.v - b.v, a.t - b.t};
}
template <class T>
DL_HD Dual<T> operator-(Dual<T> a) {
  return {-a.v, -a.t};
}
template <class T>
DL_HD Dual<T> operator*(Dual<T> a, Dual<T> b) {
  return {a.v * b.v, a.v * b.t + a.t * b.v};
}

template <class Num>
struct NumberOf {
  using Scalar = Num;
  static constexpr int planes = 1;
  static DL_HD Num constant(Num v) { return v; }
  static DL_HD Num value(Num v) { return v; }
};
template <class T>
struct NumberOf<Dual<T>> {
  using Scalar = T;
  static constexpr int planes = 2;
  static DL_HD Dual<T> constant(T v) { return {v, T(0)}; }
  static DL_HD T value(Dual<T> v) { return v.v; }
};

template <class Condition, class T>
DL_HD Dual<T> select(Condition condition, Dual<T> a, Dual<T> b) {
  return {select(condition, a.v, b.v), select(condition, a.t, b.t)};
}

// All that a comparator needs: w(r, s), its two derivatives, and e.
template <class Num>
struct Terms {
  Num w, wr, ws, e;
};

template <class CurveType, class ScaleType>
struct Swap {
  template <class T>
  static DL_HD Terms<T> terms(T r, T s, T parameter) {
    const Scale<T> q = ScaleType::of(r, parameter);
    const Curve<T> c = CurveType::first(s * q.q);
    return {c.w, s * q.q1 * c.w1, q.q * c.w1, c.e + (q.kappa - T(1)) * c.x};
  }
  template <class T>
  static DL_HD Terms<Dual<T>> terms(Dual<T> r, Dual<T> s, T parameter) {
    const Scale<T> q = ScaleType::of(r.v, parameter);
    const T v = s.v * q.q;
    const Curve<T> c = CurveType::first(v);
    const Curvature<T> d = CurveType::second(v, c);
    const T vt = s.v * q.q1 * r.t + s.t * q.q;
    // v W'' r.t and the like are grouped so that an overflowing factor meets the vanishing one first
    const Dual<T> w1{c.w1, d.w2 * vt};
    const Dual<T> q0{q.q, q.q1 * r.t}, q1{q.q1, q.q2 * r.t};
    const T e1 = c.w1 * vt + q.kappa * (c.w1 + d.y) * vt + q.kappa1 * r.t * c.x;
    return {Dual<T>{c.w, c.w1 * vt}, s * q1 * w1, q0 * w1, Dual<T>{c.e + (q.kappa - T(1)) * c.x, e1}};
  }
};

using Logistic = Swap<LogisticCurve, Linear>;
using LogisticART = Swap<LogisticCurve, Replaced>;
using Gaussian = Swap<GaussianCurve, Linear>;
using Reciprocal = Swap<ReciprocalCurve, Linear>;
using Cauchy = Swap<CauchyCurve, Linear>;
using Optimal = Swap<OptimalCurve, Linear>;

// The pair on a comparator, by its difference d = b - a alone.
template <class Num>
struct Pair {
  using Condition = ConditionOf<typename NumberOf<Num>::Scalar>;
  Condition exchanged;  // a > b
  Condition finite;
  Num r;  // |d|, or 0 for an exact swap
};

template <class Num>
DL_HD Pair<Num> compare(Num d) {
  using N = NumberOf<Num>;
  using T = typename N::Scalar;
  const auto exchanged = N::value(d) < T(0);
  const Num r = select(exchanged, -d, d);
  // false for inf and for inf - inf: an infinite operand, or a difference that overflows, is the exact swap;
  // equal infinities count as ordered
  const auto finite = N::value(r) < T(INFINITY);
  return {exchanged, finite, select(finite, r, N::constant(T(0)))};
}

// The terms of a pair as if it were finite; the functions below put the exact swap in place where it is not.
template <class SwapType, class Num, class T>
DL_HD Terms<Num> relax(const Pair<Num>& pair, Num s, T parameter) {
  return SwapType::terms(pair.r, s, parameter);
}

template <class Num>
DL_HD Num if_finite(const Pair<Num>& pair, Num x) {
  return select(pair.finite, x, NumberOf<Num>::constant(typename NumberOf<Num>::Scalar(0)));
}

// The mixing weight c = 1 - f(d) of wire b on output a. `soft` is 1, or 0 for error-free swaps, whose
// weight is exactly 0 or 1 while its tangent stays that of the relaxed swap.
template <class T>
DL_HD T weight(const Pair<T>& pair, const Terms<T>& t, T soft) {
  const T w = if_finite(pair, soft * t.w);
  return select(pair.exchanged, T(1) - w, w);
}
template <class T>
DL_HD Dual<T> weight(const Pair<Dual<T>>& pair, const Terms<Dual<T>>& t, T soft) {
  const Dual<T> w = if_finite(pair, Dual<T>{soft * t.w.v, t.w.t});
  return {select(pair.exchanged, T(1) - w.v, w.v), select(pair.exchanged, -w.t, w.t)};
}

// Error-free swaps mix the payload F, which travels forward, by the exact weight, while everything that travels
// backward, and every tangent, is mixed by the relaxed one. A tape keeps both in one number: the relaxed weight,
// negative where an error-free swap exchanges. (A relaxed swap's weight is never negative.)
template <class T>
DL_HD T recorded_weight(const Pair<T>& pair, const Terms<T>& t, T soft) {
  return weight(pair, t, T(1)) * select(pair.exchanged, T(2) * soft - T(1), T(1));
}
template <class T>
DL_HD Dual<T> recorded_weight(const Pair<Dual<T>>& pair, const Terms<Dual<T>>& t, T soft) {
  const Dual<T> c = weight(pair, t, T(1));
  return {c.v * select(pair.exchanged, T(2) * soft - T(1), T(1)), c.t};
}
template <class T>
DL_HD T relaxed_part(T recorded) {
  return select(recorded < T(0), -recorded, recorded);
}
template <class T>
DL_HD Dual<T> relaxed_part(Dual<T> recorded) {
  return {relaxed_part(recorded.v), recorded.t};
}
template <class T>
DL_HD T exact_part(T recorded, T soft) {
  return select(recorded < T(0), T(1), soft * recorded);
}
template <class T>
DL_HD T exact_part(Dual<T> recorded, T soft) {
  return exact_part(recorded.v, soft);
}

// What the relaxed swap moves from the larger to the smaller value: r w, with tangent e r' + r w_s s'.
// For an exact swap r is 0, so nothing moves.
template <class T>
DL_HD T shift(const Pair<T>& pair, const Terms<T>& t, T, T soft) {
  return soft * (pair.r * t.w);
}
template <class T>
DL_HD Dual<T> shift(const Pair<Dual<T>>& pair, const Terms<Dual<T>>& t, Dual<T> s, T soft) {
  return {soft * (pair.r.v * t.w.v), t.e.v * pair.r.t + pair.r.v * t.ws.v * s.t};
}

// e, dc/dd and dc/ds in terms of d.
template <class Num>
DL_HD Num signed_e(const Pair<Num>& pair, const Terms<Num>& t) {
  using N = NumberOf<Num>;
  const Num e = if_finite(pair, t.e);
  return select(pair.exchanged, N::constant(typename N::Scalar(1)) - e, e);
}
template <class Num>
DL_HD Num weight_by_d(const Pair<Num>& pair, const Terms<Num>& t) {
  return if_finite(pair, t.wr);
}
template <class Num>
DL_HD Num weight_by_s(const Pair<Num>& pair, const Terms<Num>& t) {
  const Num ws = if_finite(pair, t.ws);
  return select(pair.exchanged, -ws, ws);
}

// (a, b) -> ((1 - c) a + c b, c a + (1 - c) b), exact for c = 0 and c = 1; symmetric, so its own adjoint.
template <class Num>
DL_HD void mix(Num c, Num& a, Num& b) {
  const Num keep = NumberOf<Num>::constant(typename NumberOf<Num>::Scalar(1)) - c;
  const Num mixed = keep * a + c * b;
  b = c * a + keep * b;
  a = mixed;
}

// The same for the payload that travels forward: values by the weight `exact`, tangents by the relaxed weight.
template <class T>
DL_HD void mix_forward(T, T exact, T& a, T& b) {
  mix(exact, a, b);
}
template <class T>
DL_HD void mix_forward(Dual<T> c, T exact, Dual<T>& a, Dual<T>& b) {
  const T keep = T(1) - exact, turn = c.t * (b.v - a.v);
  const Dual<T> mixed{keep * a.v + exact * b.v, (T(1) - c.v) * a.t + c.v * b.t + turn};
  b = {exact * a.v + keep * b.v, c.v * a.t + (T(1) - c.v) * b.t - turn};
  a = mixed;
}

// mix() with fewer operations, to rounding: for gradients.
template <class Num>
DL_HD void mix_lean(Num c, Num& a, Num& b) {
  const Num moved = c * (b - a);
  a = a + moved;
  b = b - moved;
}

}  // namespace DL_ISA
}  // namespace difflayers
