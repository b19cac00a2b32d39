// The sums of matching costs and mask losses on CPU tensors, documented in sp_fast/ops/mask_sums.py and
// sp_fast/ops/focal_loss.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace sp_fast {

// overlap [B, N, G], area [B, N], squares [B, N], target's area [B, G], target's squares [B, G]
using MaskOverlaps = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// logits [B, N, h, w], masks [B, G, 2 h, 2 w]
MaskOverlaps mask_overlaps(const at::Tensor& logits, const at::Tensor& masks);

// cross-entropy, overlap, squares, target's squares, each [P]
using MaskPairSums = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// logits [P, h, w], masks [R, 2 h, 2 w], row [P]
MaskPairSums mask_pair_sums(const at::Tensor& logits, const at::Tensor& masks, const at::Tensor& row);

// Gradients of the first three sums, each [P] -> gradient of the logits
at::Tensor mask_pair_sums_backward(const at::Tensor& grad_cross_entropy, const at::Tensor& grad_overlap,
                                   const at::Tensor& grad_squares, const at::Tensor& logits,
                                   const at::Tensor& masks, const at::Tensor& row);

// logits [B, K, h, w], labels [B, 2 h, 2 w] -> scalar
at::Tensor upsampled_focal_loss(const at::Tensor& logits, const at::Tensor& labels, double alpha);

// grad: scalar -> gradient of the logits
at::Tensor upsampled_focal_loss_backward(const at::Tensor& grad, const at::Tensor& logits,
                                         const at::Tensor& labels, double alpha);

}  // namespace sp_fast
