#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "feature_maps.h"
#include "seed_saliency.cuh"
#ifdef SP_FAST_CUDA_ON_CPU
#include <ATen/ops/bmm.h>
#else
#include <ATen/cuda/Exceptions.h>
#endif

namespace sp_fast::cuda {
namespace {

// Maximum bytes of the similarities of one product, so that they are still in the L2 cache (40 MB on an A100,
// 50 on an H100) when they are read.
#ifdef SP_FAST_CUDA_ON_CPU
constexpr int64_t kBytes = 32 << 10;  // small tests take several products
constexpr int64_t kImages = 5;
#else
constexpr int64_t kBytes = 32 << 20;
constexpr int64_t kImages = 65'535;  // maximum of one product: cuBLAS may have a block's z for each
#endif

// Elements in 16 bytes: products read rows of a multiple of 16 bytes several times faster than others.
int64_t wide(const at::Tensor& tensor) { return 16 / static_cast<int64_t>(tensor.element_size()); }

// A view of the maps as [B, HW, D] if a product can read it: with contiguous channels or, unless norms of
// cells are needed, in aligned planes. Otherwise undefined.
at::Tensor cells_in_place(const at::Tensor& features, bool cosine) {
    const int64_t batch = features.size(0), channels = features.size(1);
    const int64_t height = features.size(2), width = features.size(3);
    // Strides of dimensions of size 1 are meaningless.
    const int64_t channel = channels > 1 ? features.stride(1) : 1;
    const int64_t cell = width > 1 ? features.stride(3) : height > 1 ? features.stride(2) : channels;
    if (width > 1 && height > 1 && features.stride(2) != width * cell) return {};
    const bool channels_last = channel == 1 && cell >= channels;
    const int64_t image = batch > 1 ? features.stride(0) : 0;
    const bool aligned = reinterpret_cast<uintptr_t>(features.const_data_ptr()) % 16 == 0 &&
                         channel % wide(features) == 0 && image % wide(features) == 0;
    const bool planes = cell == 1 && channel >= height * width && aligned && !cosine;
    if (!channels_last && !planes) return {};
    return features.as_strided({batch, height * width, channels}, {image, cell, channel});
}

// seeds [B, M, D], contiguous, and cells [B, HW, D], of stride 1 along one of the last two, -> y fp32 [B, M,
// at least HW]
void multiply(const at::Tensor& seeds, const at::Tensor& cells, const at::Tensor& y) {
#ifdef SP_FAST_CUDA_ON_CPU
    c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
    y.narrow(2, 0, cells.size(1)).copy_(at::bmm(seeds.to(at::kFloat), cells.to(at::kFloat).transpose(1, 2)));
#else
    const bool together = cells.stride(2) == 1;
    const bool single = seeds.scalar_type() == at::kFloat;
    const cudaDataType type = single                                 ? CUDA_R_32F
                              : seeds.scalar_type() == at::kBFloat16 ? CUDA_R_16BF
                                                                     : CUDA_R_16F;
    // 16-bit results would change cells in 15 of 100 masks; TF32 factors do so in at most 6 of 1,000. fp32
    // features always use TF32, whatever torch.backends.cuda.matmul.allow_tf32 says.
    const auto compute = single ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const float one = 1, zero = 0;
    const auto narrow = [](int64_t n) {
        TORCH_CHECK_VALUE(n <= std::numeric_limits<int32_t>::max(),
                          "seed_saliency: expected sizes and strides below 2^31, got ", n);
        return static_cast<int>(n);
    };
    // cuBLAS is column-major: y^T = cells * seeds^T. The stride of a single seed is arbitrary, so the rows of
    // seeds, which are contiguous, are given by their length.
    TORCH_CUDABLAS_CHECK(cublasGemmStridedBatchedEx(
        at::cuda::getCurrentCUDABlasHandle(), together ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N,
        narrow(cells.size(1)), narrow(seeds.size(1)), narrow(seeds.size(2)), &one, cells.const_data_ptr(),
        type, narrow(cells.stride(together ? 1 : 2)), cells.stride(0), seeds.const_data_ptr(), type,
        narrow(seeds.size(2)), seeds.stride(0), &zero, y.mutable_data_ptr(), CUDA_R_32F, narrow(y.stride(1)),
        y.stride(0), narrow(seeds.size(0)), compute, CUBLAS_GEMM_DEFAULT));
#endif
}

// features [B, D, H, W], seeds [B, M, D] -> words int32 [B, M, W32], score fp32 [B, M]
std::tuple<at::Tensor, at::Tensor> seed_saliency(const at::Tensor& features, const at::Tensor& seeds,
                                                 const std::optional<at::Tensor>& valid, bool cosine,
                                                 double threshold) {
    check_features(features);
    const int64_t batch = features.size(0), channels = features.size(1);
    const int64_t cells = features.size(2) * features.size(3);
    check_device("seeds", seeds, features);
    check_shape("seeds", seeds, {batch, -1, channels});
    check_same_dtype("seeds", seeds, features);
    TORCH_CHECK_VALUE(threshold >= 0 && threshold <= 1, "threshold: expected a number in [0, 1], got ",
                      threshold);
    const OnDevice on(features);
    const at::Tensor sizes = checked_valid(valid, features);
    const int64_t number = seeds.size(1), words = (cells + 31) / 32;
    const auto options = features.options();
    if (channels == 0) {
        return {at::zeros({batch, number, words}, options.dtype(at::kInt)),
                at::zeros({batch, number}, options.dtype(at::kFloat))};
    }
    at::Tensor packed = at::empty({batch, number, words}, options.dtype(at::kInt));
    at::Tensor score = at::empty({batch, number}, options.dtype(at::kFloat));
    if (score.numel() == 0) return {packed, score};

    const at::Tensor vectors = seeds.contiguous();
    const at::Tensor in_place = cells_in_place(features, cosine);
    // Rows of y are whole cache lines.
    const int64_t pitch = 32 * words;
    const int64_t most = std::clamp<int64_t>(kBytes / (number * pitch * 4), 1, kImages);
    const int64_t products = (batch + most - 1) / most, images = (batch + products - 1) / products;
    const at::Tensor y = at::empty({images, number, pitch}, options.dtype(at::kFloat));
    at::Tensor copy, factors;
    const int64_t copied = ceil_div(channels, wide(features)) * wide(features);
    if (!in_place.defined()) copy = at::empty({images, cells, copied}, options);
    if (cosine) factors = at::empty({images, pitch}, options.dtype(at::kFloat));
    for (int64_t first = 0; first < batch; first += images) {
        const int64_t some = std::min(images, batch - first);
        const at::Tensor part = sizes.defined() ? sizes.narrow(0, first, some) : sizes;
        const FeatureMaps maps = feature_maps(features.narrow(0, first, some), part);
        at::Tensor x;
        if (in_place.defined()) {
            x = in_place.narrow(0, first, some);
        } else {
            launch_copy_cells(maps, copied, copy.mutable_data_ptr(), on.stream);
            x = copy.narrow(0, 0, some).narrow(2, 0, channels);
        }
        if (cosine) {
            // The norm of a seed cancels in the normalisation.
            launch_cell_factors(
                {x.const_data_ptr(), maps.element, some, cells, channels, x.stride(0), x.stride(1)}, pitch,
                factors.mutable_data_ptr<float>(), on.stream);
        }
        multiply(vectors.narrow(0, first, some), x, y.narrow(0, 0, some));
        launch_threshold_rows({y.const_data_ptr<float>(), cosine ? factors.const_data_ptr<float>() : nullptr,
                               some, number, pitch, maps.height, maps.width, maps.valid},
                              static_cast<float>(threshold),
                              packed.mutable_data_ptr<int32_t>() + first * number * words,
                              score.mutable_data_ptr<float>() + first * number, on.stream);
    }
    return {packed, score};
}

}  // namespace

SP_FAST_CUDA_OPS(m) { m.impl("seed_saliency", seed_saliency); }

}  // namespace sp_fast::cuda
