#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "checks.h"
#include "ops.h"
#include "vectors.h"

namespace sp_fast {
namespace {

// Number of multiply-adds below which another thread costs more than it saves.
constexpr int64_t kGrain = 1 << 17;

template <typename T>
SP_FAST_INLINE int64_t best_prompt(const T* kernel, const T* unit_prompts, int64_t count, int64_t channels,
                                   T* unit_kernel) {
    normalize(kernel, channels, unit_kernel);
    int64_t best = -1;
    T best_cosine = 0;
    for (int64_t l = 0; l < count; ++l) {
        const T cosine = dot(unit_kernel, unit_prompts + l * channels, channels);
        if (!std::isnan(cosine) && (best < 0 || cosine > best_cosine)) {
            best = l;
            best_cosine = cosine;
        }
    }
    return best;
}

SP_FAST_CLONES int64_t best(const float* kernel, const float* unit_prompts, int64_t count, int64_t channels,
                            float* unit_kernel) {
    return best_prompt(kernel, unit_prompts, count, channels, unit_kernel);
}
SP_FAST_CLONES int64_t best(const double* kernel, const double* unit_prompts, int64_t count, int64_t channels,
                            double* unit_kernel) {
    return best_prompt(kernel, unit_prompts, count, channels, unit_kernel);
}
SP_FAST_CLONES void normalize_row(const float* x, int64_t n, float* out) { normalize(x, n, out); }
SP_FAST_CLONES void normalize_row(const double* x, int64_t n, double* out) { normalize(x, n, out); }

}  // namespace

std::tuple<at::Tensor, at::Tensor> match_prompts(const at::Tensor& kernels, const at::Tensor& prompts,
                                                 const std::optional<at::Tensor>& count) {
    check_cpu("kernels", kernels);
    check_cpu("prompts", prompts);
    check_shape("prompts", prompts, {-1, -1, -1});
    check_real("prompts", prompts);
    check_same_dtype("kernels", kernels, prompts);
    const int64_t batch = prompts.size(0), number = prompts.size(1), channels = prompts.size(2);
    const bool shared = kernels.dim() == 2;
    if (shared) {
        check_shape("kernels", kernels, {-1, channels});
    } else {
        check_shape("kernels", kernels, {batch, -1, channels});
    }
    const int64_t kernel_count = kernels.size(-2);
    const at::Tensor rows = checked_count(count, prompts, batch, number);
    const int64_t* rows_data = rows.const_data_ptr<int64_t>();
    const auto type = accumulate_type(prompts);
    const at::Tensor all_kernels = kernels.to(type).contiguous();
    const at::Tensor all_prompts = prompts.to(type).contiguous();
    at::Tensor unit_prompts = at::empty(all_prompts.sizes(), all_prompts.options());
    at::Tensor decorated = at::empty({batch, kernel_count, channels}, all_prompts.options());
    at::Tensor index = at::empty({batch, kernel_count}, prompts.options().dtype(at::kLong));
    int64_t* index_data = index.mutable_data_ptr<int64_t>();

    AT_DISPATCH_FLOATING_TYPES(type, "match_prompts", [&] {
        const scalar_t* kernel_data = all_kernels.const_data_ptr<scalar_t>();
        const scalar_t* prompt_data = all_prompts.const_data_ptr<scalar_t>();
        scalar_t* unit_data = unit_prompts.mutable_data_ptr<scalar_t>();
        scalar_t* decorated_data = decorated.mutable_data_ptr<scalar_t>();
        for (int64_t b = 0; b < batch; ++b) {
            for (int64_t l = b * number; l < b * number + rows_data[b]; ++l) {
                normalize_row(prompt_data + l * channels, channels, unit_data + l * channels);
            }
        }
        const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, number * channels));
        at::parallel_for(0, batch * kernel_count, grain, [&](int64_t begin, int64_t end) {
            std::vector<scalar_t> unit_kernel(channels);
            for (int64_t i = begin; i < end; ++i) {
                const int64_t b = i / kernel_count;
                const scalar_t* kernel = kernel_data + (shared ? i % kernel_count : i) * channels;
                const scalar_t* image_prompts = prompt_data + b * number * channels;
                scalar_t* out = decorated_data + i * channels;
                const int64_t l = best(kernel, unit_data + b * number * channels, rows_data[b], channels,
                                       unit_kernel.data());
                index_data[i] = l;
                if (l < 0) {
                    std::copy_n(kernel, channels, out);
                } else {
                    for (int64_t c = 0; c < channels; ++c)
                        out[c] = kernel[c] + image_prompts[l * channels + c];
                }
            }
        });
    });
    return {decorated.to(prompts.scalar_type()), index};
}

std::tuple<at::Tensor, at::Tensor> match_prompts_backward(const at::Tensor& grad, const at::Tensor& index,
                                                          int64_t prompts, bool sum_kernels,
                                                          bool sum_prompts) {
    check_cpu("grad", grad);
    check_cpu("index", index);
    check_shape("grad", grad, {-1, -1, -1});
    check_real("grad", grad);
    check_shape("index", index, {grad.size(0), grad.size(1)});
    check_index("index", index);
    at::Tensor grad_kernels = at::empty({0}, grad.options()), grad_prompts = at::empty({0}, grad.options());
    if (sum_kernels) grad_kernels = grad.sum(0);
    if (sum_prompts) {
        const auto type = accumulate_type(grad);
        // -1 (no prompt) becomes an extra last row, which is dropped.
        const at::Tensor row = index.to(at::kLong).remainder(prompts + 1).unsqueeze(-1);
        grad_prompts = at::zeros({grad.size(0), prompts + 1, grad.size(2)}, grad.options().dtype(type))
                           .scatter_add(1, row.expand(grad.sizes()), grad.to(type))
                           .narrow(1, 0, prompts)
                           .to(grad.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
    }
    return {grad_kernels, grad_prompts};
}

}  // namespace sp_fast
