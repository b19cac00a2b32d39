// Every feature is read once, through shared memory with copies ahead of the sums, and added to all boxes
// that cover it. Nothing is subtracted, so a NaN reaches only these boxes; sums have a fixed order.
//
// A warp holds 32 boxes, one per lane: a ballot gives the boxes in which a row or cell lies, and a minimum
// over the lanes gives the position where these change next.
#include "roi_average_cells.cuh"
#include "roi_average_planes.cuh"
#include "roi_average_pool.cuh"

namespace sp_fast::cuda {
namespace {

// fp64: one warp per average.
__global__ void __launch_bounds__(kThreads)
    pool_doubles(const double* __restrict__ features, RoiBoxes boxes, int64_t channels, int64_t values,
                 bool channels_last, double* __restrict__ out) {
    const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (i >= values) return;
    const int64_t row = i / channels, image = row / boxes.number, channel = i % channels;
    const Cells cells = cells_of(boxes, image, row % boxes.number, real_boxes(boxes, image));
    const int64_t size = int64_t(boxes.height) * boxes.width, step = channels_last ? channels : 1;
    const double* plane = features + image * channels * size + (channels_last ? channel : channel * size);
    double total = 0;
    for (int y = cells.y0; y < cells.y1; ++y) {
        for (int x = cells.x0 + lane; x < cells.x1; x += 32)
            total += plane[(int64_t(y) * boxes.width + x) * step];
    }
    for (int by = 16; by > 0; by /= 2) total += __shfl_xor_sync(kAllLanes, total, by);
    if (lane != 0) return;
    out[i] = cells.y1 > 0 ? total / static_cast<double>(cells.cells()) : 0;
}

template <typename T>
void launch(const RoiFeatures& maps, const RoiBoxes& boxes, int multiprocessors, float* scratch, void* out,
            cudaStream_t stream) {
    const T* features = static_cast<const T*>(maps.data);
    T* pooled = static_cast<T*>(out);
    if (maps.channels_last) {
        launch_cells(features, maps, boxes, multiprocessors, scratch, pooled, stream);
    } else if (sizeof(T) == 2 && boxes.width % 2 == 0 && reinterpret_cast<uintptr_t>(features) % 4 == 0) {
        launch_planes<T, sizeof(T) == 2>(features, maps, boxes, pooled, stream);
    } else {
        launch_planes<T, false>(features, maps, boxes, pooled, stream);
    }
}

}  // namespace

int64_t roi_average_pool_scratch(const RoiFeatures& features, const RoiBoxes& boxes, int multiprocessors) {
    const int64_t values = features.batch * boxes.number * features.channels;
    if (!features.channels_last || features.element == Element::kDouble || values == 0) return 0;
    return values * cell_shape(features, boxes, multiprocessors).chunks;
}

void launch_roi_average_pool(const RoiFeatures& features, const RoiBoxes& boxes, int multiprocessors,
                             float* scratch, void* out, cudaStream_t stream) {
    const int64_t values = features.batch * boxes.number * features.channels;
    if (values == 0) return;
    switch (features.element) {
        case Element::kFloat:
            return launch<float>(features, boxes, multiprocessors, scratch, out, stream);
        case Element::kHalf:
            return launch<__half>(features, boxes, multiprocessors, scratch, out, stream);
        case Element::kBFloat16:
            return launch<__nv_bfloat16>(features, boxes, multiprocessors, scratch, out, stream);
        case Element::kDouble:
            SP_FAST_LAUNCH(pool_doubles, grid_of(values, kWarps), kThreads, 0, stream,
                           static_cast<const double*>(features.data), boxes, features.channels, values,
                           features.channels_last, static_cast<double*>(out));
    }
}

}  // namespace sp_fast::cuda
