// The pose [R | t] of a calibrated camera from 3 points (u, v, X, Y, Z), u and v on the plane z = 1.
//
// The distances from the camera satisfy three laws of cosines (Grunert 1841; Haralick, Lee, Ottenberg, Noelle, "Review
// and analysis of solutions of the three point perspective pose estimation problem", IJCV 1994): with u = d2 / d1 and
// v = d3 / d1, two of their quotients give u as a rational function of v and a quartic in v. Newton's method on the
// three laws then removes what the quartic's conditioning cost.
#pragma once

#include "minimal.h"
#include "real_roots.h"

namespace difflayers::cpu::minimal {

struct Pose {
  static constexpr int size = 3, point = 5, parameters = 12, solutions = 4, freedom = 6;

  static double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
  static void cross(const double* a, const double* b, double* out) {
    out[0] = a[1] * b[2] - a[2] * b[1];
    out[1] = a[2] * b[0] - a[0] * b[2];
    out[2] = a[0] * b[1] - a[1] * b[0];
  }

  static int solve(const double* sample, double* models) {
    double ray[9];
    for (int i = 0; i < 3; ++i) {
      const double* p = sample + i * point;
      const double length = std::sqrt(p[0] * p[0] + p[1] * p[1] + 1);
      ray[3 * i] = p[0] / length, ray[3 * i + 1] = p[1] / length, ray[3 * i + 2] = 1 / length;
    }
    // opposite to point i: the cosine between the other two rays and the squared distance of the other two points
    double cosine[3], square[3];
    for (int i = 0; i < 3; ++i) {
      const int j = (i + 1) % 3, k = (i + 2) % 3;
      cosine[i] = dot(ray + 3 * j, ray + 3 * k);
      square[i] = 0;
      for (int c = 2; c < 5; ++c) square[i] += std::pow(sample[j * point + c] - sample[k * point + c], 2);
    }
    double frame[9];
    double corner[9];
    for (int i = 0; i < 3; ++i) std::copy(sample + i * point + 2, sample + i * point + 5, corner + 3 * i);
    if (!frame_of(corner, frame)) return 0;  // collinear, or equal points
    const double q = (square[0] - square[2]) / square[1], r = square[2] / square[1];
    const double n[3] = {1 + q, -2 * q * cosine[1], q - 1}, d[2] = {2 * cosine[2], -2 * cosine[0]};
    const double dd[3] = {d[0] * d[0], 2 * d[0] * d[1], d[1] * d[1]};
    const double side[3] = {1 - r, 2 * r * cosine[1], -r};  // 1 - r (1 + v^2 - 2 v cos)
    double p[5] = {0, 0, 0, 0, 0};
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) p[i + j] += dd[i] * side[j] + n[i] * n[j];
      for (int j = 0; j < 2; ++j) p[i + j] -= 2 * cosine[2] * n[i] * d[j];
    }
    // of a double root lifted off the axis Newton's method decides, so the polynomial need not be near 0 to rounding
    double pairs[4][2], found[solutions * 3];
    int count = 0;
    const int candidates = roots::real<4>(p, pairs, 1e-9);
    for (int i = 0; i < candidates; ++i) {
      const double v = pairs[i][0] / pairs[i][1], below = d[0] + d[1] * v, opposite = 1 + v * v - 2 * v * cosine[1];
      if (!(v > 0) || !(opposite > 0)) continue;
      double* distance = found + 3 * count;
      distance[0] = std::sqrt(square[1] / opposite);
      distance[1] = distance[0] * (n[0] + (n[1] + n[2] * v) * v) / below;
      distance[2] = distance[0] * v;
      if (!polish(cosine, square, distance)) continue;
      bool known = false;
      for (int j = 0; j < count; ++j) {
        double apart = 0;
        for (int c = 0; c < 3; ++c) apart += std::abs(found[3 * j + c] - distance[c]);
        known |= apart < 1e-9 * (distance[0] + distance[1] + distance[2]);
      }
      if (known || !pose(ray, distance, frame, sample + 2, models + parameters * count)) continue;
      ++count;
    }
    return count;
  }

  // Newton's method on d_j^2 + d_k^2 - 2 d_j d_k cos_i = square_i; false unless it arrives at positive distances.
  static bool polish(const double* cosine, const double* square, double* distance) {
    double scale = square[0] + square[1] + square[2], error = 0;
    for (int step = 0; step < 8; ++step) {
      double jacobian[9] = {}, value[3];
      error = 0;
      for (int i = 0; i < 3; ++i) {
        const int j = (i + 1) % 3, k = (i + 2) % 3;
        const double a = distance[j], b = distance[k];
        value[i] = a * a + b * b - 2 * a * b * cosine[i] - square[i];
        error = std::max(error, std::abs(value[i]));
        jacobian[3 * i + j] = 2 * (a - b * cosine[i]);
        jacobian[3 * i + k] = 2 * (b - a * cosine[i]);
      }
      if (error < 1e-15 * scale) break;
      if (!small::solve<3, 1>(jacobian, value)) break;
      for (int i = 0; i < 3; ++i) distance[i] -= value[i];
    }
    return error < 1e-10 * scale && distance[0] > 0 && distance[1] > 0 && distance[2] > 0;
  }

  // Right-handed orthonormal axes (columns) of the triangle with these corners; false when it has no area.
  static bool frame_of(const double* corner, double* axes) {
    double side[3], other[3], normal[3], across[3];
    for (int c = 0; c < 3; ++c) side[c] = corner[3 + c] - corner[c], other[c] = corner[6 + c] - corner[c];
    cross(side, other, normal);
    const double a = small::norm(side, 3), b = small::norm(other, 3), area = small::norm(normal, 3);
    if (!(area > 1e-10 * a * b)) return false;
    for (int c = 0; c < 3; ++c) side[c] /= a, normal[c] /= area;
    cross(normal, side, across);
    for (int c = 0; c < 3; ++c) axes[3 * c] = side[c], axes[3 * c + 1] = across[c], axes[3 * c + 2] = normal[c];
    return true;
  }

  static bool pose(const double* ray, const double* distance, const double* frame, const double* world,
                   double* model) {
    double seen[9], axes[9];
    for (int i = 0; i < 3; ++i)
      for (int c = 0; c < 3; ++c) seen[3 * i + c] = distance[i] * ray[3 * i + c];
    if (!frame_of(seen, axes)) return false;
    for (int i = 0; i < 3; ++i) {
      double* row = model + 4 * i;
      for (int j = 0; j < 3; ++j) row[j] = dot(axes + 3 * i, frame + 3 * j);
      row[3] = seen[i] - dot(row, world);
    }
    return true;
  }

  // Motions: turns about the middle of the points as the camera sees them, and moves, in units in which both change
  // the images by about as much.
  static void linearise(const double* model, const double* sample, double* tangent, double* by_model,
                        double* by_sample) {
    double seen[9], middle[3] = {0, 0, 0};
    for (int i = 0; i < 3; ++i)
      for (int c = 0; c < 3; ++c) {
        seen[3 * i + c] = dot(model + 4 * c, sample + i * point + 2) + model[4 * c + 3];
        middle[c] += seen[3 * i + c] / 3;
      }
    double radius = 0;
    for (int i = 0; i < 9; ++i) radius += std::pow(seen[i] - middle[i % 3], 2) / 3;
    radius = std::sqrt(radius);
    const double depth = small::norm(middle, 3), turn = depth / radius;
    std::fill(tangent, tangent + freedom * parameters, 0.0);
    std::fill(by_sample, by_sample + freedom * size * point, 0.0);
    for (int a = 0; a < 3; ++a) {
      const double axis[3] = {double(a == 0), double(a == 1), double(a == 2)};
      for (int j = 0; j < 4; ++j) {
        double column[3], moved[3];
        for (int c = 0; c < 3; ++c) column[c] = model[4 * c + j] - (j == 3 ? middle[c] : 0);
        cross(axis, column, moved);
        for (int c = 0; c < 3; ++c) tangent[a * parameters + 4 * c + j] = turn * moved[c];
      }
      tangent[(3 + a) * parameters + 4 * a + 3] = depth;
    }
    for (int i = 0; i < 3; ++i) {
      const double* p = sample + i * point;
      for (int e = 0; e < 2; ++e) {
        const int row = 2 * i + e;
        for (int k = 0; k < freedom; ++k) {
          // the motion of the point as the camera sees it
          const double* t = tangent + k * parameters;
          const double along = dot(t + 4 * e, p + 2) + t[4 * e + 3], deep = dot(t + 8, p + 2) + t[11];
          by_model[row * freedom + k] = along - p[e] * deep;
        }
        double* of_point = by_sample + (row * size + i) * point;
        of_point[e] = -seen[3 * i + 2];
        for (int c = 0; c < 3; ++c) of_point[2 + c] = model[4 * e + c] - p[e] * model[8 + c];
      }
    }
  }
};

}  // namespace difflayers::cpu::minimal
