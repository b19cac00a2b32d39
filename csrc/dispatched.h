// The public ops, called through PyTorch's dispatcher: on any device, with autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace sp_fast::dispatched {

std::tuple<at::Tensor, at::Tensor> connected_parts(const at::Tensor& words, int64_t height, int64_t width,
                                                   int64_t max_parts, int64_t min_area, int64_t connectivity);
at::Tensor deformable_attention(const at::Tensor& value, const at::Tensor& sizes, const at::Tensor& locations,
                                const at::Tensor& weights);
at::Tensor pool_seeds(const at::Tensor& features, at::IntArrayRef grid,
                      const std::optional<at::Tensor>& valid);
std::tuple<at::Tensor, at::Tensor> seed_saliency(const at::Tensor& features, const at::Tensor& seeds,
                                                 const std::optional<at::Tensor>& valid, bool cosine,
                                                 double threshold);
at::Tensor mask_nms(const at::Tensor& words, const at::Tensor& score, double iou_threshold, int64_t min_area,
                    int64_t max_masks);
at::Tensor matrix_nms(const at::Tensor& words, const at::Tensor& score, bool gaussian, double sigma);
at::Tensor roi_average_pool(const at::Tensor& features, const at::Tensor& boxes,
                            const std::optional<at::Tensor>& count);
at::Tensor roi_average_pool_backward(const at::Tensor& grad, const at::Tensor& boxes,
                                     const std::optional<at::Tensor>& count, int64_t height, int64_t width,
                                     bool channels_last);
std::tuple<at::Tensor, at::Tensor> match_prompts(const at::Tensor& kernels, const at::Tensor& prompts,
                                                 const std::optional<at::Tensor>& count);
at::Tensor kernel_supervision_loss(const at::Tensor& kernels, const at::Tensor& targets,
                                   const at::Tensor& index, bool mean);

}  // namespace sp_fast::dispatched
