#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "ops.h"
#include "vectors.h"

namespace sp_fast {
namespace {

// Number of gradient elements below which another thread costs more than it saves.
constexpr int64_t kGrain = 1 << 18;

template <typename T>
struct Pair {
    T cosine, kernel_norm, target_norm;
};

template <typename T>
SP_FAST_INLINE Pair<T> compare_vectors(const T* kernel, const T* target, int64_t channels) {
    return {dot(kernel, target, channels), norm(kernel, channels), norm(target, channels)};
}

// grad_x += weight * d cos(x, y) / dx, where cos = x . y / (max(|x|, eps) max(|y|, eps)).
template <typename T>
SP_FAST_INLINE void add_gradient(const T* x, const T* y, T cosine, T x_norm, T y_norm, T weight,
                                 int64_t channels, T* grad_x) {
    const T eps = T(kCosineEps);
    const T y_factor = weight / (std::max(x_norm, eps) * std::max(y_norm, eps));
    const T x_factor = x_norm < eps ? T(0) : weight * cosine / (x_norm * x_norm);
    for (int64_t c = 0; c < channels; ++c) grad_x[c] += y_factor * y[c] - x_factor * x[c];
}

SP_FAST_CLONES Pair<float> compare(const float* kernel, const float* target, int64_t channels) {
    return compare_vectors(kernel, target, channels);
}
SP_FAST_CLONES Pair<double> compare(const double* kernel, const double* target, int64_t channels) {
    return compare_vectors(kernel, target, channels);
}
SP_FAST_CLONES void add(const float* x, const float* y, float cosine, float x_norm, float y_norm,
                        float weight, int64_t channels, float* grad_x) {
    add_gradient(x, y, cosine, x_norm, y_norm, weight, channels, grad_x);
}
SP_FAST_CLONES void add(const double* x, const double* y, double cosine, double x_norm, double y_norm,
                        double weight, int64_t channels, double* grad_x) {
    add_gradient(x, y, cosine, x_norm, y_norm, weight, channels, grad_x);
}

template <typename T>
Pair<T> compare_pair(const T* kernel, const T* target, int64_t channels) {
    Pair<T> pair = compare(kernel, target, channels);
    const T eps = T(kCosineEps);
    pair.cosine /= std::max(pair.kernel_norm, eps) * std::max(pair.target_norm, eps);
    return pair;
}

struct Problem {
    at::Tensor kernels, targets, index;
    int64_t stages, batch, number, proposals, channels;
    std::vector<double> stage_weights;
};

Problem check_problem(const at::Tensor& kernels, const at::Tensor& targets, const at::Tensor& index,
                      bool mean) {
    check_cpu("kernels", kernels);
    check_cpu("targets", targets);
    check_cpu("index", index);
    check_shape("kernels", kernels, {-1, -1, -1, -1});
    check_real("kernels", kernels);
    check_same_dtype("targets", targets, kernels);
    check_index("index", index);
    Problem problem;
    problem.stages = kernels.size(0);
    problem.batch = kernels.size(1);
    problem.number = kernels.size(2);
    problem.channels = kernels.size(3);
    check_shape("targets", targets, {problem.batch, -1, problem.channels});
    problem.proposals = targets.size(1);
    check_shape("index", index, {problem.stages, problem.batch, problem.proposals});
    problem.kernels = kernels.to(accumulate_type(kernels)).contiguous();
    problem.targets = targets.to(accumulate_type(kernels)).contiguous();
    problem.index = index.to(at::kLong).contiguous();
    check_values("index", problem.index, -1, problem.number - 1);
    const int64_t* matched = problem.index.const_data_ptr<int64_t>();
    const int64_t per_stage = problem.batch * problem.proposals;
    for (int64_t s = 0; s < problem.stages; ++s) {
        const auto* stage = matched + s * per_stage;
        const int64_t pairs = std::count_if(stage, stage + per_stage, [](int64_t n) { return n >= 0; });
        problem.stage_weights.push_back(mean ? 1.0 / static_cast<double>(std::max<int64_t>(pairs, 1)) : 1.0);
    }
    return problem;
}

}  // namespace

at::Tensor kernel_supervision_loss(const at::Tensor& kernels, const at::Tensor& targets,
                                   const at::Tensor& index, bool mean) {
    const Problem problem = check_problem(kernels, targets, index, mean);
    const int64_t per_stage = problem.batch * problem.proposals, pairs = problem.stages * per_stage;
    const int64_t* matched = problem.index.const_data_ptr<int64_t>();
    std::vector<double> loss(pairs, 0);
    AT_DISPATCH_FLOATING_TYPES(problem.kernels.scalar_type(), "kernel_supervision_loss", [&] {
        const scalar_t* kernel_data = problem.kernels.const_data_ptr<scalar_t>();
        const scalar_t* target_data = problem.targets.const_data_ptr<scalar_t>();
        at::parallel_for(0, pairs, 512, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                if (matched[i] < 0) continue;
                const int64_t image = i / problem.proposals;  // index over stages and images
                const scalar_t* kernel =
                    kernel_data + (image * problem.number + matched[i]) * problem.channels;
                const scalar_t* target = target_data + i % per_stage * problem.channels;
                loss[i] = 1 - compare_pair(kernel, target, problem.channels).cosine;
            }
        });
    });
    double total = 0;
    for (int64_t i = 0; i < pairs; ++i) total += loss[i] * problem.stage_weights[i / per_stage];
    return at::empty({}, problem.kernels.options()).fill_(total);
}

std::tuple<at::Tensor, at::Tensor> kernel_supervision_loss_backward(const at::Tensor& grad,
                                                                    const at::Tensor& kernels,
                                                                    const at::Tensor& targets,
                                                                    const at::Tensor& index, bool mean) {
    const Problem problem = check_problem(kernels, targets, index, mean);
    check_cpu("grad", grad);
    check_shape("grad", grad, {});
    const double scale = grad.to(at::kDouble).item<double>();
    const int64_t* matched = problem.index.const_data_ptr<int64_t>();
    at::Tensor grad_kernels = at::empty(problem.kernels.sizes(), problem.kernels.options());
    at::Tensor grad_targets = at::zeros(problem.targets.sizes(), problem.targets.options());
    AT_DISPATCH_FLOATING_TYPES(problem.kernels.scalar_type(), "kernel_supervision_loss_backward", [&] {
        const scalar_t* kernel_data = problem.kernels.const_data_ptr<scalar_t>();
        const scalar_t* target_data = problem.targets.const_data_ptr<scalar_t>();
        scalar_t* grad_kernel_data = grad_kernels.mutable_data_ptr<scalar_t>();
        scalar_t* grad_target_data = grad_targets.mutable_data_ptr<scalar_t>();
        const int64_t size = problem.number * problem.channels;
        const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, problem.stages * size));
        // Each image belongs to one thread, so no two threads write to the same gradient.
        at::parallel_for(0, problem.batch, grain, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                for (int64_t s = 0; s < problem.stages; ++s) {
                    const int64_t image = s * problem.batch + b;
                    std::fill_n(grad_kernel_data + image * size, size, scalar_t(0));
                    const auto weight = static_cast<scalar_t>(-scale * problem.stage_weights[s]);
                    for (int64_t l = 0; l < problem.proposals; ++l) {
                        const int64_t n = matched[image * problem.proposals + l];
                        if (n < 0) continue;
                        const int64_t k = (image * problem.number + n) * problem.channels;
                        const int64_t t = (b * problem.proposals + l) * problem.channels;
                        const auto pair = compare_pair(kernel_data + k, target_data + t, problem.channels);
                        add(kernel_data + k, target_data + t, pair.cosine, pair.kernel_norm, pair.target_norm,
                            weight, problem.channels, grad_kernel_data + k);
                        add(target_data + t, kernel_data + k, pair.cosine, pair.target_norm, pair.kernel_norm,
                            weight, problem.channels, grad_target_data + t);
                    }
                }
            }
        });
    });
    return {grad_kernels.to(kernels.scalar_type()), grad_targets.to(kernels.scalar_type())};
}

}  // namespace sp_fast
