// Schemas, CPU kernels and autograd of the sums of matching costs and mask losses.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "find_op.h"
#include "mask_sums.h"

namespace sp_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct PairSums : torch::autograd::Function<PairSums> {
    static variable_list forward(AutogradContext* context, const Tensor& logits, const Tensor& masks,
                                 const Tensor& row) {
        static const auto op = find_op<decltype(mask_pair_sums)>("sp_fast::mask_pair_sums");
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({logits, masks, row});
        auto [cross_entropy, overlap, squares, target_squares] = op.call(logits, masks, row);
        context->mark_non_differentiable({target_squares});
        return {cross_entropy, overlap, squares, target_squares};
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        static const auto op = find_op<decltype(mask_pair_sums_backward)>("sp_fast::mask_pair_sums_backward");
        const auto saved = context->get_saved_variables();
        return {op.call(grads[0], grads[1], grads[2], saved[0], saved[1], saved[2]), Tensor(), Tensor()};
    }
};

struct FocalLoss : torch::autograd::Function<FocalLoss> {
    static Tensor forward(AutogradContext* context, const Tensor& logits, const Tensor& labels,
                          double alpha) {
        static const auto op = find_op<decltype(upsampled_focal_loss)>("sp_fast::upsampled_focal_loss");
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({logits, labels});
        context->saved_data["alpha"] = alpha;
        return op.call(logits, labels, alpha);
    }

    static variable_list backward(AutogradContext* context, variable_list grads) {
        static const auto op =
            find_op<decltype(upsampled_focal_loss_backward)>("sp_fast::upsampled_focal_loss_backward");
        const auto saved = context->get_saved_variables();
        return {op.call(grads[0], saved[0], saved[1], context->saved_data["alpha"].toDouble()), Tensor(),
                Tensor()};
    }
};

MaskPairSums mask_pair_sums_autograd(const Tensor& logits, const Tensor& masks, const Tensor& row) {
    const variable_list sums = PairSums::apply(logits, masks, row);
    return {sums[0], sums[1], sums[2], sums[3]};
}

Tensor upsampled_focal_loss_autograd(const Tensor& logits, const Tensor& labels, double alpha) {
    return FocalLoss::apply(logits, labels, alpha);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(sp_fast, m) {
    m.def("mask_overlaps(Tensor logits, Tensor masks) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("mask_pair_sums(Tensor logits, Tensor masks, Tensor row) -> (Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "mask_pair_sums_backward(Tensor grad_cross_entropy, Tensor grad_overlap, Tensor grad_squares, "
        "Tensor logits, Tensor masks, Tensor row) -> Tensor");
    m.def("upsampled_focal_loss(Tensor logits, Tensor labels, float alpha) -> Tensor");
    m.def("upsampled_focal_loss_backward(Tensor grad, Tensor logits, Tensor labels, float alpha) -> Tensor");
}

TORCH_LIBRARY_IMPL(sp_fast, CPU, m) {
    m.impl("mask_overlaps", mask_overlaps);
    m.impl("mask_pair_sums", mask_pair_sums);
    m.impl("mask_pair_sums_backward", mask_pair_sums_backward);
    m.impl("upsampled_focal_loss", upsampled_focal_loss);
    m.impl("upsampled_focal_loss_backward", upsampled_focal_loss_backward);
}

TORCH_LIBRARY_IMPL(sp_fast, Autograd, m) {
    m.impl("mask_pair_sums", mask_pair_sums_autograd);
    m.impl("upsampled_focal_loss", upsampled_focal_loss_autograd);
    for (const char* name : {"mask_overlaps", "mask_pair_sums_backward", "upsampled_focal_loss_backward"}) {
        m.impl(name, torch::autograd::autogradNotImplementedFallback());
    }
}

}  // namespace sp_fast
