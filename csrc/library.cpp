// The schema of every operator, on one screen. Kernels are registered in cpu/ and cuda/, shapes, batching rules
// and gradients in difflayers/_ops.py.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/instruction_set.h"

#ifndef DL_CUDA_ARCHITECTURES
#define DL_CUDA_ARCHITECTURES ""
#endif

namespace difflayers {

// "available,...;in use;cuda architectures"
std::string build_info() {
  std::string info;
  for (const auto& set : cpu::instruction_sets()) info += std::string(info.empty() ? "" : ",") + set.name;
  return info + ";" + cpu::instruction_set().name + ";" + DL_CUDA_ARCHITECTURES;
}

}  // namespace difflayers

STABLE_TORCH_LIBRARY(difflayers, library) {
  library.def("build_info() -> str");
  // See sorting/reference.py for what these compute. first and last are SymInt: as int, torch.compile would compile
  // again for every number of elements. Rows first: [B, ...], or [1, ...] for a
  // payload that is the same in every row. steepness [B]; without it, every row has the steepness `constant`.
  library.def(
      "transport(Tensor scores, Tensor? steepness, Tensor? payload, str what, str network, SymInt first, SymInt last, "
      "str swap, float parameter, float constant, bool hard) -> Tensor");
  library.def(
      "transport_backward(Tensor gradient, Tensor scores, Tensor? steepness, Tensor? payload, str what, str network, "
      "SymInt first, SymInt last, str swap, float parameter, float constant, bool hard, bool of_steepness, "
      "bool of_payload) -> (Tensor, Tensor, Tensor)");
  // The derivative of sum(h * transport_backward(...)) by gradient, scores, steepness and payload.
  library.def(
      "transport_double_backward(Tensor h_scores, Tensor? h_steepness, Tensor? h_payload, Tensor gradient, "
      "Tensor scores, Tensor? steepness, Tensor? payload, str what, str network, SymInt first, SymInt last, str swap, "
      "float parameter, float constant, bool hard) -> (Tensor, Tensor, Tensor, Tensor)");
  // The CPU's scratch for one thread; direction 0 forward, 1 backward, 2 double backward.
  library.def(
      "transport_scratch_bytes(Tensor scores, Tensor? payload, str what, str network, int first, int last, "
      "bool of_steepness, int direction) -> int");

  // Estimators, float32 rows [B, n]; see estimators/reference.py. temperature [B, 1]; without it, `constant`.
  // Returns (soft, sample); the sample is empty unless hard.
  library.def(
      "gumbel_softmax(Tensor logits, Tensor bits, Tensor? temperature, float constant, bool hard) -> (Tensor, Tensor)");
  library.def(
      "gumbel_softmax_backward(Tensor gradient, Tensor soft, Tensor? temperature, float constant) -> Tensor");
  // uniform float64 [B, 1]. Returns the one-hot sample and the marked logits: those minus the row's largest one, with
  // the sign bit set except where chosen.
  library.def("choose(Tensor logits, Tensor uniform) -> (Tensor, Tensor)");
  // kind "straight_through" or "reinmax".
  library.def(
      "choose_backward(Tensor gradient, Tensor marked, Tensor? temperature, float constant, str kind) -> Tensor");

  // Exactly k of n, 0 < k < n, theta finite; see subsets/reference.py. With g, the marginals' derivative along it; with
  // h too, their second derivative along both. uniform is float64 [B, samples, n] in [0, 1).
  library.def("subset_marginals(Tensor theta, Tensor? g, Tensor? h, int k) -> Tensor");
  library.def("subset_sample(Tensor theta, Tensor uniform, int k) -> Tensor");
  library.def("subset_log_normalizer(Tensor theta, int k) -> Tensor");

  // Projections onto the permutahedron, see isotonic.h: the result, the order of the sorted scores, and for each
  // sorted position where its block begins. x [B, n]; temperature [B, 1], without it `constant` in every row.
  // task: "rank", "sort", "topk"; k is for topk.
  library.def(
      "permutahedron(Tensor x, Tensor? temperature, float constant, str task, bool entropic, int k) "
      "-> (Tensor, Tensor, Tensor)");
  library.def(
      "permutahedron_backward(Tensor gradient, Tensor x, Tensor? temperature, Tensor result, Tensor order, "
      "Tensor starts, float constant, str task, bool entropic, bool of_temperature) -> (Tensor, Tensor)");

  // Minimal solvers, float64; see cpu/minimal.h. Returns models [B, solutions, parameters], how many each sample has
  // [B], condition numbers [B, solutions] or [0].
  library.def("minimal_solve(Tensor samples, str problem, bool with_condition) -> (Tensor, Tensor, Tensor)");
  library.def(
      "minimal_backward(Tensor gradient, Tensor models, Tensor counts, Tensor samples, str problem, float worst) "
      "-> Tensor");

  // Levenberg-Marquardt of robust losses on the manifold of `model`, float64; see cpu/refine_kernels.h. Returns models
  // [B, H, parameters] and their losses [B, H].
  library.def(
      "refine_models(Tensor models, Tensor points, Tensor? mask, Tensor threshold, str model, str loss, int steps) "
      "-> (Tensor, Tensor)");
  // Scores [B, H] of models [B, H, parameters] on points [B, N, d]; see residuals.h and scores.h. mask [B, N] and
  // valid [B, H] bool; scale [B] float64, what residuals are measured in; a model that cannot reach at_least [B]
  // float64 may stop and return a score below it. The gradients are by models, points and scale.
  library.def(
      "hypothesis_scores(Tensor models, Tensor points, Tensor? mask, Tensor? valid, Tensor scale, Tensor? at_least, "
      "str residual, str score, float parameter) -> Tensor");
  library.def(
      "hypothesis_scores_backward(Tensor gradient, Tensor models, Tensor points, Tensor? mask, Tensor? valid, "
      "Tensor scale, str residual, str score, float parameter) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(difflayers, CompositeExplicitAutograd, library) {
  library.impl("build_info", TORCH_BOX(&difflayers::build_info));
}
