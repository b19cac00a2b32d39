// The ops on CPU tensors, documented in sp_fast/ops. They check all sizes, so none reads out of bounds.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace sp_fast {

// bool [..., H, W] -> words int32 [..., W32]
at::Tensor pack_masks(const at::Tensor& masks);

// words int32 [..., W32] -> bool [..., H, W]
at::Tensor unpack_masks(const at::Tensor& words, int64_t height, int64_t width);

// words int32 [..., W32] -> number of cells inside each, int32 [...]
at::Tensor mask_areas(const at::Tensor& words);

// words int32 [..., W32] -> tight boxes x0 y0 x1 y1, half-open, int32 [..., 4]
at::Tensor mask_boxes(const at::Tensor& words, int64_t height, int64_t width);

// words int32 [..., W32] -> words of the connected parts int32 [..., max_parts, W32], count int64 [...]
std::tuple<at::Tensor, at::Tensor> connected_parts(const at::Tensor& words, int64_t height, int64_t width,
                                                   int64_t max_parts, int64_t min_area, int64_t connectivity);

// value [B, K, M, D], sizes int [L, 2], locations [B, Q, M, L, P, 2], weights [B, Q, M, L, P]
// -> [B, Q, M * D]
at::Tensor deformable_attention(const at::Tensor& value, const at::Tensor& sizes, const at::Tensor& locations,
                                const at::Tensor& weights);

// grad [B, Q, M * D] -> gradients of value, locations and weights
std::tuple<at::Tensor, at::Tensor, at::Tensor> deformable_attention_backward(const at::Tensor& grad,
                                                                             const at::Tensor& value,
                                                                             const at::Tensor& sizes,
                                                                             const at::Tensor& locations,
                                                                             const at::Tensor& weights);

// saliency [K, h, w], threshold fp32 [K] -> lengths int32 [R], number int64 [K]
std::tuple<at::Tensor, at::Tensor> mask_runs(const at::Tensor& saliency, const at::Tensor& threshold,
                                             int64_t height, int64_t width);

// lengths int32 [R], number int64 [K] -> text uint8 [C], characters int64 [K]
std::tuple<at::Tensor, at::Tensor> compress_runs(const at::Tensor& lengths, const at::Tensor& number);

// features [B, D, H, W]; grid: H', W' of each grid, flat; valid [B, 2] -> seeds [B, M, D]
at::Tensor pool_seeds(const at::Tensor& features, at::IntArrayRef grid,
                      const std::optional<at::Tensor>& valid);

// text uint8 [T]: compressed run lengths of masks of height x width, one after another; ends int64 [n]; rows
// int64 [R] and columns int64 [C]: source of each row and column, -1 for none -> words int32 [n, W32] of C x
// R cells, column after column
at::Tensor sample_runs(const at::Tensor& text, const at::Tensor& ends, int64_t height, int64_t width,
                       const at::Tensor& rows, const at::Tensor& columns);

// features [B, D, H, W], seeds [B, M, D] -> words int32 [B, M, W32], score fp32 [B, M]
std::tuple<at::Tensor, at::Tensor> seed_saliency(const at::Tensor& features, const at::Tensor& seeds,
                                                 const std::optional<at::Tensor>& valid, bool cosine,
                                                 double threshold);

// words int32 [B, M, W32], score [B, M] -> int64 [B, max_masks]
at::Tensor mask_nms(const at::Tensor& words, const at::Tensor& score, double iou_threshold, int64_t min_area,
                    int64_t max_masks);

// Rows `chosen`, int64 [B, K], of words int32 [B, M, W32], score fp32 [B, M] and seeds [B, M, D], zeros where
// it is -1; and their number, int64 [B]
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> take_proposals(const at::Tensor& words,
                                                                          const at::Tensor& score,
                                                                          const at::Tensor& seeds,
                                                                          const at::Tensor& chosen);

// words int32 [B, M, W32], score [B, M] -> fp32 [B, M]
at::Tensor matrix_nms(const at::Tensor& words, const at::Tensor& score, bool gaussian, double sigma);

// features [B, C, H, W], boxes [B, L, 4], count [B] -> [B, L, C]
at::Tensor roi_average_pool(const at::Tensor& features, const at::Tensor& boxes,
                            const std::optional<at::Tensor>& count);

// grad [B, L, C] -> [B, C, H, W], contiguous or channels-last
at::Tensor roi_average_pool_backward(const at::Tensor& grad, const at::Tensor& boxes,
                                     const std::optional<at::Tensor>& count, int64_t height, int64_t width,
                                     bool channels_last);

// kernels [N, C] or [B, N, C], prompts [B, L, C], count [B] -> decorated [B, N, C], index int64 [B, N]
std::tuple<at::Tensor, at::Tensor> match_prompts(const at::Tensor& kernels, const at::Tensor& prompts,
                                                 const std::optional<at::Tensor>& count);

// grad [B, N, C], index int64 [B, N] -> grad summed over images [N, C], and over the kernels that chose each
// prompt [B, L, C]; a sum that is not wanted is empty
std::tuple<at::Tensor, at::Tensor> match_prompts_backward(const at::Tensor& grad, const at::Tensor& index,
                                                          int64_t prompts, bool sum_kernels,
                                                          bool sum_prompts);

// kernels [S, B, N, C], targets [B, L, C], index [S, B, L] -> scalar
at::Tensor kernel_supervision_loss(const at::Tensor& kernels, const at::Tensor& targets,
                                   const at::Tensor& index, bool mean);

// grad: scalar -> gradients of kernels and targets
std::tuple<at::Tensor, at::Tensor> kernel_supervision_loss_backward(const at::Tensor& grad,
                                                                    const at::Tensor& kernels,
                                                                    const at::Tensor& targets,
                                                                    const at::Tensor& index, bool mean);

}  // namespace sp_fast
