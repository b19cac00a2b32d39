// Schemas, CPU kernels and autograd. Fake kernels, and CUDA kernels not written in CUDA, are registered from
// Python.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "dispatched.h"
#include "find_op.h"
#include "ops.h"

namespace sp_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using ConnectedParts = std::tuple<Tensor, Tensor>(const Tensor&, c10::SymInt, c10::SymInt, int64_t, int64_t,
                                                  int64_t);
using AttentionBackward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                             const Tensor&, const Tensor&);
using PoolBackward = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::SymInt,
                            c10::SymInt, bool);
using MatchBackward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, c10::SymInt, bool, bool);
using LossBackward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                bool);

std::optional<Tensor> optional(const Tensor& saved) {
    return saved.defined() ? std::optional<Tensor>(saved) : std::nullopt;
}

Tensor pool_backward(const Tensor& grad, const Tensor& boxes, const std::optional<Tensor>& count,
                     c10::SymInt height, c10::SymInt width, bool channels_last) {
    static const auto op = find_op<PoolBackward>("sp_fast::roi_average_pool_backward");
    return op.call(grad, boxes, count, std::move(height), std::move(width), channels_last);
}

std::tuple<Tensor, Tensor> match_backward(const Tensor& grad, const Tensor& index, c10::SymInt prompts,
                                          bool sum_kernels, bool sum_prompts) {
    static const auto op = find_op<MatchBackward>("sp_fast::match_prompts_backward");
    return op.call(grad, index, std::move(prompts), sum_kernels, sum_prompts);
}

struct DeformableAttention : torch::autograd::Function<DeformableAttention> {
    static Tensor forward(AutogradContext* context, const Tensor& value, const Tensor& sizes,
                          const Tensor& locations, const Tensor& weights) {
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({value, sizes, locations, weights});
        return dispatched::deformable_attention(value, sizes, locations, weights);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        static const auto op = find_op<AttentionBackward>("sp_fast::deformable_attention_backward");
        const auto saved = context->get_saved_variables();
        auto [grad_value, grad_locations, grad_weights] =
            op.call(grads[0], saved[0], saved[1], saved[2], saved[3]);
        return {grad_value, Tensor(), grad_locations, grad_weights};
    }
};

// The op is linear in the features, so its double backward is the op itself.
struct RoiAveragePool : torch::autograd::Function<RoiAveragePool> {
    static Tensor forward(AutogradContext* context, const Tensor& features, const Tensor& boxes,
                          const std::optional<Tensor>& count) {
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({boxes, count.value_or(Tensor())});
        context->saved_data["height"] = features.sym_size(2);
        context->saved_data["width"] = features.sym_size(3);
        context->saved_data["channels_last"] =
            !features.is_contiguous() && features.is_contiguous(at::MemoryFormat::ChannelsLast);
        return dispatched::roi_average_pool(features, boxes, count);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        return {pool_backward(
                    grads[0], saved[0], optional(saved[1]), context->saved_data["height"].toSymInt(),
                    context->saved_data["width"].toSymInt(), context->saved_data["channels_last"].toBool()),
                Tensor(), Tensor()};
    }
};

struct RoiAveragePoolBackward : torch::autograd::Function<RoiAveragePoolBackward> {
    static Tensor forward(AutogradContext* context, const Tensor& grad, const Tensor& boxes,
                          const std::optional<Tensor>& count, const c10::SymInt& height,
                          const c10::SymInt& width, bool channels_last) {
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({boxes, count.value_or(Tensor())});
        return pool_backward(grad, boxes, count, height, width, channels_last);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const auto saved = context->get_saved_variables();
        return {dispatched::roi_average_pool(grads[0], saved[0], optional(saved[1])),
                Tensor(),
                Tensor(),
                Tensor(),
                Tensor(),
                Tensor()};
    }
};

struct MatchPrompts : torch::autograd::Function<MatchPrompts> {
    static variable_list forward(AutogradContext* context, const Tensor& kernels, const Tensor& prompts,
                                 const std::optional<Tensor>& count) {
        at::AutoDispatchBelowADInplaceOrView below;
        auto [decorated, index] = dispatched::match_prompts(kernels, prompts, count);
        context->save_for_backward({index});
        context->mark_non_differentiable({index});
        context->saved_data["shared"] = kernels.dim() == 2;
        context->saved_data["prompts"] = prompts.sym_size(1);
        return {decorated, index};
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const Tensor index = context->get_saved_variables()[0];  // [B, N]
        const Tensor& grad = grads[0];                           // [B, N, C]
        const bool shared = context->saved_data["shared"].toBool();
        const bool sum_kernels = shared && context->needs_input_grad(0);
        const bool sum_prompts = context->needs_input_grad(1);
        Tensor grad_kernels, grad_prompts;
        if (sum_kernels || sum_prompts) {
            std::tie(grad_kernels, grad_prompts) = match_backward(
                grad, index, context->saved_data["prompts"].toSymInt(), sum_kernels, sum_prompts);
        }
        return {shared ? grad_kernels : grad, grad_prompts, Tensor()};
    }
};

// The op is linear in grad; its backward consists of differentiable PyTorch ops.
struct MatchPromptsBackward : torch::autograd::Function<MatchPromptsBackward> {
    static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& index,
                                 const c10::SymInt& prompts, bool sum_kernels, bool sum_prompts) {
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({index});
        context->saved_data["channels"] = grad.sym_size(2);
        context->saved_data["sum_kernels"] = sum_kernels;
        context->saved_data["sum_prompts"] = sum_prompts;
        auto [grad_kernels, grad_prompts] = match_backward(grad, index, prompts, sum_kernels, sum_prompts);
        return {grad_kernels, grad_prompts};
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        const Tensor index = context->get_saved_variables()[0];
        const c10::SymInt channels = context->saved_data["channels"].toSymInt();
        const std::vector<c10::SymInt> shape{index.sym_size(0), index.sym_size(1), channels};
        Tensor result = grads[0].new_zeros_symint(shape);
        if (context->saved_data["sum_kernels"].toBool()) result = result.add(grads[0]);
        if (context->saved_data["sum_prompts"].toBool() && grads[1].sym_size(1) > 0) {
            const Tensor row = index.clamp_min(0).unsqueeze(-1).expand_symint(shape);
            result = result.add(grads[1].gather(1, row).masked_fill(index.unsqueeze(-1).lt(0), 0));
        }
        return {result, Tensor(), Tensor(), Tensor(), Tensor()};
    }
};

struct KernelSupervisionLoss : torch::autograd::Function<KernelSupervisionLoss> {
    static Tensor forward(AutogradContext* context, const Tensor& kernels, const Tensor& targets,
                          const Tensor& index, bool mean) {
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({kernels, targets, index});
        context->saved_data["mean"] = mean;
        return dispatched::kernel_supervision_loss(kernels, targets, index, mean);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        static const auto op = find_op<LossBackward>("sp_fast::kernel_supervision_loss_backward");
        const auto saved = context->get_saved_variables();
        auto [grad_kernels, grad_targets] =
            op.call(grads[0], saved[0], saved[1], saved[2], context->saved_data["mean"].toBool());
        return {grad_kernels, grad_targets, Tensor(), Tensor()};
    }
};

Tensor deformable_attention_autograd(const Tensor& value, const Tensor& sizes, const Tensor& locations,
                                     const Tensor& weights) {
    return DeformableAttention::apply(value, sizes, locations, weights);
}

Tensor roi_average_pool_autograd(const Tensor& features, const Tensor& boxes,
                                 const std::optional<Tensor>& count) {
    return RoiAveragePool::apply(features, boxes, count);
}

Tensor roi_average_pool_backward_autograd(const Tensor& grad, const Tensor& boxes,
                                          const std::optional<Tensor>& count, c10::SymInt height,
                                          c10::SymInt width, bool channels_last) {
    return RoiAveragePoolBackward::apply(grad, boxes, count, height, width, channels_last);
}

std::tuple<Tensor, Tensor> match_prompts_autograd(const Tensor& kernels, const Tensor& prompts,
                                                  const std::optional<Tensor>& count) {
    const variable_list results = MatchPrompts::apply(kernels, prompts, count);
    return {results[0], results[1]};
}

std::tuple<Tensor, Tensor> match_prompts_backward_autograd(const Tensor& grad, const Tensor& index,
                                                           c10::SymInt prompts, bool sum_kernels,
                                                           bool sum_prompts) {
    const variable_list results = MatchPromptsBackward::apply(grad, index, prompts, sum_kernels, sum_prompts);
    return {results[0], results[1]};
}

Tensor kernel_supervision_loss_autograd(const Tensor& kernels, const Tensor& targets, const Tensor& index,
                                        bool mean) {
    return KernelSupervisionLoss::apply(kernels, targets, index, mean);
}

}  // namespace

namespace dispatched {

std::tuple<Tensor, Tensor> connected_parts(const Tensor& words, int64_t height, int64_t width,
                                           int64_t max_parts, int64_t min_area, int64_t connectivity) {
    static const auto op = find_op<ConnectedParts>("sp_fast::connected_parts");
    return op.call(words, height, width, max_parts, min_area, connectivity);
}

Tensor deformable_attention(const Tensor& value, const Tensor& sizes, const Tensor& locations,
                            const Tensor& weights) {
    static const auto op = find_op<decltype(sp_fast::deformable_attention)>("sp_fast::deformable_attention");
    return op.call(value, sizes, locations, weights);
}

Tensor pool_seeds(const Tensor& features, at::IntArrayRef grid, const std::optional<Tensor>& valid) {
    static const auto op = find_op<decltype(sp_fast::pool_seeds)>("sp_fast::pool_seeds");
    return op.call(features, grid, valid);
}

std::tuple<Tensor, Tensor> seed_saliency(const Tensor& features, const Tensor& seeds,
                                         const std::optional<Tensor>& valid, bool cosine, double threshold) {
    static const auto op = find_op<decltype(sp_fast::seed_saliency)>("sp_fast::seed_saliency");
    return op.call(features, seeds, valid, cosine, threshold);
}

Tensor mask_nms(const Tensor& words, const Tensor& score, double iou_threshold, int64_t min_area,
                int64_t max_masks) {
    static const auto op = find_op<decltype(sp_fast::mask_nms)>("sp_fast::mask_nms");
    return op.call(words, score, iou_threshold, min_area, max_masks);
}

Tensor matrix_nms(const Tensor& words, const Tensor& score, bool gaussian, double sigma) {
    static const auto op = find_op<decltype(sp_fast::matrix_nms)>("sp_fast::matrix_nms");
    return op.call(words, score, gaussian, sigma);
}

Tensor roi_average_pool(const Tensor& features, const Tensor& boxes, const std::optional<Tensor>& count) {
    static const auto op = find_op<decltype(sp_fast::roi_average_pool)>("sp_fast::roi_average_pool");
    return op.call(features, boxes, count);
}

Tensor roi_average_pool_backward(const Tensor& grad, const Tensor& boxes, const std::optional<Tensor>& count,
                                 int64_t height, int64_t width, bool channels_last) {
    return pool_backward(grad, boxes, count, height, width, channels_last);
}

std::tuple<Tensor, Tensor> match_prompts(const Tensor& kernels, const Tensor& prompts,
                                         const std::optional<Tensor>& count) {
    static const auto op = find_op<decltype(sp_fast::match_prompts)>("sp_fast::match_prompts");
    return op.call(kernels, prompts, count);
}

Tensor kernel_supervision_loss(const Tensor& kernels, const Tensor& targets, const Tensor& index, bool mean) {
    static const auto op =
        find_op<decltype(sp_fast::kernel_supervision_loss)>("sp_fast::kernel_supervision_loss");
    return op.call(kernels, targets, index, mean);
}

}  // namespace dispatched

TORCH_LIBRARY(sp_fast, m) {
    m.def("pack_masks(Tensor masks) -> Tensor");
    m.def("unpack_masks(Tensor words, SymInt height, SymInt width) -> Tensor");
    m.def("mask_areas(Tensor words) -> Tensor");
    m.def("mask_boxes(Tensor words, SymInt height, SymInt width) -> Tensor");
    m.def(
        "connected_parts(Tensor words, SymInt height, SymInt width, int max_parts, int min_area, "
        "int connectivity) -> (Tensor, Tensor)");
    m.def("deformable_attention(Tensor value, Tensor sizes, Tensor locations, Tensor weights) -> Tensor");
    m.def(
        "deformable_attention_backward(Tensor grad, Tensor value, Tensor sizes, Tensor locations, "
        "Tensor weights) -> (Tensor, Tensor, Tensor)");
    m.def("mask_runs(Tensor saliency, Tensor threshold, int height, int width) -> (Tensor, Tensor)");
    m.def("compress_runs(Tensor lengths, Tensor number) -> (Tensor, Tensor)");
    m.def("pool_seeds(Tensor features, int[] grid, Tensor? valid) -> Tensor");
    m.def(
        "sample_runs(Tensor text, Tensor ends, int height, int width, Tensor rows, Tensor columns) -> "
        "Tensor");
    m.def(
        "seed_saliency(Tensor features, Tensor seeds, Tensor? valid, bool cosine, float threshold) "
        "-> (Tensor, Tensor)");
    m.def("mask_nms(Tensor words, Tensor score, float iou_threshold, int min_area, int max_masks) -> Tensor");
    m.def(
        "take_proposals(Tensor words, Tensor score, Tensor seeds, Tensor chosen) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
    m.def("matrix_nms(Tensor words, Tensor score, bool gaussian, float sigma) -> Tensor");
    m.def("roi_average_pool(Tensor features, Tensor boxes, Tensor? count) -> Tensor");
    m.def(
        "roi_average_pool_backward(Tensor grad, Tensor boxes, Tensor? count, SymInt height, SymInt width, "
        "bool channels_last) -> Tensor");
    m.def("match_prompts(Tensor kernels, Tensor prompts, Tensor? count) -> (Tensor, Tensor)");
    m.def(
        "match_prompts_backward(Tensor grad, Tensor index, SymInt prompts, bool sum_kernels, "
        "bool sum_prompts) -> (Tensor, Tensor)");
    m.def("kernel_supervision_loss(Tensor kernels, Tensor targets, Tensor index, bool mean) -> Tensor");
    m.def(
        "kernel_supervision_loss_backward(Tensor grad, Tensor kernels, Tensor targets, Tensor index, "
        "bool mean) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(sp_fast, CPU, m) {
    m.impl("pack_masks", pack_masks);
    m.impl("unpack_masks", unpack_masks);
    m.impl("mask_areas", mask_areas);
    m.impl("mask_boxes", mask_boxes);
    m.impl("connected_parts", connected_parts);
    m.impl("deformable_attention", deformable_attention);
    m.impl("deformable_attention_backward", deformable_attention_backward);
    m.impl("mask_runs", mask_runs);
    m.impl("compress_runs", compress_runs);
    m.impl("pool_seeds", pool_seeds);
    m.impl("sample_runs", sample_runs);
    m.impl("seed_saliency", seed_saliency);
    m.impl("mask_nms", mask_nms);
    m.impl("take_proposals", take_proposals);
    m.impl("matrix_nms", matrix_nms);
    m.impl("roi_average_pool", roi_average_pool);
    m.impl("roi_average_pool_backward", roi_average_pool_backward);
    m.impl("match_prompts", match_prompts);
    m.impl("match_prompts_backward", match_prompts_backward);
    m.impl("kernel_supervision_loss", kernel_supervision_loss);
    m.impl("kernel_supervision_loss_backward", kernel_supervision_loss_backward);
}

TORCH_LIBRARY_IMPL(sp_fast, Autograd, m) {
    m.impl("deformable_attention", deformable_attention_autograd);
    m.impl("roi_average_pool", roi_average_pool_autograd);
    m.impl("roi_average_pool_backward", roi_average_pool_backward_autograd);
    m.impl("match_prompts", match_prompts_autograd);
    m.impl("match_prompts_backward", match_prompts_backward_autograd);
    m.impl("kernel_supervision_loss", kernel_supervision_loss_autograd);
    for (const char* name :
         {"pack_masks", "unpack_masks", "mask_areas", "mask_boxes", "connected_parts",
          "deformable_attention_backward", "mask_runs", "compress_runs", "pool_seeds", "sample_runs",
          "seed_saliency", "mask_nms", "take_proposals", "matrix_nms", "kernel_supervision_loss_backward"}) {
        m.impl(name, torch::autograd::autogradNotImplementedFallback());
    }
}

}  // namespace sp_fast
