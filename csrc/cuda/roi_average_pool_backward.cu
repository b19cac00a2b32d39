// The gradient of a cell is the sum of the shares (gradient / area) of the boxes that contain it, in
// ascending order of boxes, and is written once. Along a row it is constant between two sides of boxes, and
// all rows between two cuts are equal.
//
// A warp holds 32 boxes at a time, one per lane: a ballot gives the boxes that contain a cell, and a minimum
// over the lanes gives the position where these change next.
#include <algorithm>

#include "roi_average_pool_backward.cuh"
#include "roi_columns.cuh"

namespace sp_fast::cuda {
namespace {

constexpr int kShares = 32;       // boxes whose shares are in shared memory
constexpr int kMostBoxes = 1024;  // boxes whose cells are in shared memory
constexpr int kSegments = 32;
constexpr int kPlaneWarps = 4, kCellWarps = 8;

// Reads the cells of all real boxes of an image, with all threads of the block; returns their number.
__device__ __forceinline__ int read_cells(const RoiBoxes& boxes, int64_t image, Cells* cells) {
    const int real = static_cast<int>(real_boxes(boxes, image));
    for (int l = threadIdx.x; l < real; l += blockDim.x) cells[l] = cells_of(boxes, image, l, real);
    __syncthreads();
    return real;
}

__device__ __forceinline__ Cells cells_of_lane(const Cells* cells, int real, int pass) {
    const int l = pass * 32 + static_cast<int>(threadIdx.x % 32);
    return l < real ? cells[l] : Cells{0, 0, 0, 0};
}

// Calls add(box) for each box that contains cell (x, y), in ascending order; returns the next column, at most
// `limit`, that lies in other boxes. `first`: cells_of_lane of pass 0.
template <typename F>
__device__ __forceinline__ int boxes_at(const Cells* cells, int real, const Cells& first, int y, int x,
                                        int limit, F add) {
    int cut = limit;
    for (int pass = 0; pass * 32 < real; ++pass) {
        const Cells mine = pass == 0 ? first : cells_of_lane(cells, real, pass);
        const bool here = mine.has_row(y);
        unsigned mask = __ballot_sync(kAllLanes, here && mine.has_column(x));
        cut = min(cut, __reduce_min_sync(kAllLanes, here ? mine.column_cut(x) : INT32_MAX));
        for (; mask != 0; mask &= mask - 1) add(pass * 32 + __ffs(static_cast<int>(mask)) - 1);
    }
    return cut;
}

struct PlaneShape {
    int groups, parts;  // groups of 32 channels; parts of the rows
    int blocks;         // blocks per image
    int warp_bytes;     // shared memory of a warp
};

// Each warp handles 32 planes of an image and a part of their rows. A cell lies in the same boxes in all of
// them: for the sums each lane is a channel, for writing each lane is some columns.
template <typename T, int N>
__global__ void __launch_bounds__(32 * kPlaneWarps, 4)
    spread_planes(const T* __restrict__ grad, RoiBoxes boxes, int64_t channels, PlaneShape shape,
                  T* __restrict__ out) {
    using Owned = ColumnsOf<T, N>;
    SP_FAST_DYNAMIC_SHARED(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t image = blockIdx.x / shape.blocks;
    const int task = static_cast<int>(blockIdx.x % shape.blocks) * kPlaneWarps + warp;
    float* values = reinterpret_cast<float*>(shared + warp * shape.warp_bytes);  // [kSegments, kValuePitch]
    float* shares = values + kSegments * kValuePitch;                            // [kShares, 32]
    unsigned char* segment = reinterpret_cast<unsigned char*>(shares + kShares * 32);
    Cells* cells = reinterpret_cast<Cells*>(shared + kPlaneWarps * shape.warp_bytes);
    const int real = read_cells(boxes, image, cells);
    if (task >= shape.groups * shape.parts) return;

    const int part = task % shape.parts, height = boxes.height, width = boxes.width;
    const int64_t first_channel = int64_t(task / shape.parts) * 32;
    const int planes = static_cast<int>(min(int64_t(32), channels - first_channel));
    const T* grads = grad + image * boxes.number * channels + first_channel + lane;
    const auto share_of = [&](int l) {
        return lane < planes ? to_float(grads[l * channels]) / cells[l].area() : 0.f;
    };
#pragma unroll 8
    for (int l = 0; l < min(real, kShares); ++l) shares[l * 32 + lane] = share_of(l);

    const Cells first = cells_of_lane(cells, real, 0);
    const int stop = static_cast<int>(int64_t(height) * (part + 1) / shape.parts);
    int y = static_cast<int>(int64_t(height) * part / shape.parts);
    T* plane = out + (image * channels + first_channel) * height * width;
    while (y < stop) {
        int next = stop;
        for (int pass = 0; pass * 32 < real; ++pass) {
            const Cells mine = pass == 0 ? first : cells_of_lane(cells, real, pass);
            next = min(next, __reduce_min_sync(kAllLanes, mine.row_cut(y)));
        }
        for (int x = 0; x < width;) {
            const int left = x, limit = min(width, left + Owned::kWindow);
            for (int number = 0; number < kSegments && x < limit; ++number) {
                float sum = 0;
                const int cut = boxes_at(cells, real, first, y, x, limit, [&](int l) {
                    sum += l < kShares ? shares[l * 32 + lane] : share_of(l);
                });
                values[number * kValuePitch + lane] = sum;
#pragma unroll 1
                for (int i = x + lane; i < cut; i += 32) {
                    segment[i - left] = static_cast<unsigned char>(number);
                }
                x = cut;
            }
            __syncwarp();
            Owned owned;
            owned.find(segment, x - left, lane);
            T* to = plane + int64_t(y) * width + left;
#pragma unroll 1
            for (int c = 0; c < planes; ++c) {
                owned.write(values + c, to, width, next - y, x - left, lane);
                to += int64_t(height) * width;
            }
            __syncwarp();
        }
        y = next;
    }
}

struct CellShape {
    int groups, shift;  // groups of 32 V channels; 2^shift lanes per cell
    int blocks;         // blocks per image and group
    int64_t chunk;      // cells per warp
};

// Index of the i-th of V values of a lane; lanes store them in groups of four to avoid bank conflicts.
template <int V>
__device__ __forceinline__ int share_index(int vector, int i) {
    return V <= 4 ? vector * V + i : i / 4 * 128 + vector * 4 + i % 4;
}

// Each warp handles up to 32 V channels of a chunk of consecutive cells.
template <typename T, int V>
__global__ void __launch_bounds__(32 * kCellWarps, 4)
    spread_cells(const T* __restrict__ grad, RoiBoxes boxes, int64_t channels, CellShape shape,
                 T* __restrict__ out) {
    SP_FAST_DYNAMIC_SHARED(shared);
    float* shares = reinterpret_cast<float*>(shared);  // [kShares, 32 V]
    Cells* cells = reinterpret_cast<Cells*>(shares + kShares * 32 * V);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = boxes.width;
    const int64_t block = blockIdx.x % shape.blocks, rest = blockIdx.x / shape.blocks;
    const int64_t image = rest / shape.groups, first_channel = rest % shape.groups * 32 * V;
    const int mine = static_cast<int>(min(int64_t(32 * V), channels - first_channel));
    const T* grads = grad + image * boxes.number * channels + first_channel;
    const int real = read_cells(boxes, image, cells);
    const int kept = min(real, kShares) * 32 * V;
#pragma unroll 4
    for (int i = threadIdx.x; i < kept; i += 32 * kCellWarps) {
        const int l = i / (32 * V), c = i % (32 * V);
        if (c >= mine) continue;
        shares[l * 32 * V + share_index<V>(c / V, c % V)] =
            to_float(grads[l * channels + c]) / cells[l].area();
    }
    __syncthreads();

    const int64_t size = int64_t(boxes.height) * width;
    const int64_t begin = (block * kCellWarps + warp) * shape.chunk, stop = min(begin + shape.chunk, size);
    const int vector = lane & ((1 << shape.shift) - 1), step = 32 >> shape.shift;
    const bool writes = vector * V < mine;
    const Cells first = cells_of_lane(cells, real, 0);
    T* to = out + (image * size + begin) * channels + first_channel + vector * V;
    int y = static_cast<int>(begin / width), x = static_cast<int>(begin - int64_t(y) * width);
    for (int64_t cell = begin; cell < stop;) {
        const int limit = static_cast<int>(min(int64_t(width), x + stop - cell));
        float sums[V] = {};
        const int cut = boxes_at(cells, real, first, y, x, limit, [&](int l) {
            if (l < kShares) {
#pragma unroll
                for (int i = 0; i < V; ++i) sums[i] += shares[l * 32 * V + share_index<V>(vector, i)];
            } else if (writes) {
#pragma unroll
                for (int i = 0; i < V; ++i)
                    sums[i] += to_float(grads[l * channels + vector * V + i]) / cells[l].area();
            }
        });
        Pack<T, V> value;
#pragma unroll
        for (int i = 0; i < V; ++i) value.at[i] = from_float<T>(sums[i]);
        const int number = cut - x;
        if (writes) {
#pragma unroll 4
            for (int i = lane >> shape.shift; i < number; i += step) store<V>(to + i * channels, value);
        }
        to += number * channels;
        cell += number;
        x = cut;
        if (x == width) {
            x = 0;
            ++y;
        }
    }
}

__device__ __forceinline__ double wide(double x) { return x; }
template <typename T>
__device__ __forceinline__ float wide(T x) {
    return to_float(x);
}
template <typename T>
__device__ __forceinline__ T narrow(float x) {
    return from_float<T>(x);
}
template <typename T>
__device__ __forceinline__ T narrow(double x) {
    return x;
}

// fp64, and more boxes than fit in shared memory: one thread per element.
template <typename T>
__global__ void __launch_bounds__(256, 4)
    spread_any(const T* __restrict__ grad, RoiBoxes boxes, int64_t channels, int64_t elements,
               bool channels_last, T* __restrict__ out) {
    using Sum = decltype(wide(T()));
    const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (i >= elements) return;
    const int64_t size = int64_t(boxes.height) * boxes.width, image = i / (channels * size);
    const int64_t within = i - image * channels * size;
    const int64_t channel = channels_last ? within % channels : within / size;
    const int64_t cell = channels_last ? within / channels : within % size;
    const int y = static_cast<int>(cell / boxes.width), x = static_cast<int>(cell % boxes.width);
    const int64_t real = real_boxes(boxes, image);
    const T* grads = grad + image * boxes.number * channels + channel;
    Sum sum = 0;
    for (int64_t l = 0; l < real; ++l) {
        const Cells cells = cells_of(boxes, image, l, real);
        if (!cells.has_row(y) || !cells.has_column(x)) continue;
        sum += wide(grads[l * channels]) / static_cast<Sum>(cells.cells());
    }
    out[i] = narrow<T>(sum);
}

template <typename T>
struct Task {
    const T* grad;
    int64_t batch, channels;
    RoiBoxes boxes;
    int multiprocessors;
    T* out;
    cudaStream_t stream;

    int64_t size() const { return int64_t(boxes.height) * boxes.width; }
    size_t cells_bytes() const { return size_t(boxes.number) * sizeof(Cells); }
};

template <int N, typename T>
void launch_planes(const Task<T>& task) {
    PlaneShape shape;
    shape.groups = static_cast<int>(ceil_div(task.channels, 32));
    // Enough warps for 24 on every multiprocessor; parts consist of whole rows.
    const int64_t parts = task.multiprocessors * int64_t(24) / (task.batch * shape.groups);
    shape.parts = static_cast<int>(std::clamp<int64_t>(parts, 1, task.boxes.height));
    shape.blocks = static_cast<int>(ceil_div(int64_t(shape.groups) * shape.parts, kPlaneWarps));
    shape.warp_bytes = (kSegments * kValuePitch + kShares * 32) * static_cast<int>(sizeof(float)) + 32 * N;
    SP_FAST_LAUNCH((spread_planes<T, N>), static_cast<unsigned>(task.batch * shape.blocks), 32 * kPlaneWarps,
                   kPlaneWarps * shape.warp_bytes + task.cells_bytes(), task.stream, task.grad, task.boxes,
                   task.channels, shape, task.out);
}

template <int V, typename T>
void launch_cells(const Task<T>& task) {
    CellShape shape;
    shape.groups = static_cast<int>(ceil_div(task.channels, 32 * V));
    shape.shift = 0;
    while (shape.shift < 5 && (int64_t(V) << shape.shift) < task.channels) ++shape.shift;
    const int64_t blocks = task.multiprocessors * int64_t(3) / (task.batch * shape.groups);
    const int64_t most = ceil_div(task.size(), kCellWarps * 16);
    shape.chunk = ceil_div(task.size(), std::clamp<int64_t>(blocks, 1, most) * kCellWarps);
    shape.blocks = static_cast<int>(ceil_div(task.size(), shape.chunk * kCellWarps));
    SP_FAST_LAUNCH((spread_cells<T, V>), static_cast<unsigned>(task.batch * shape.groups * shape.blocks),
                   32 * kCellWarps, kShares * 32 * V * sizeof(float) + task.cells_bytes(), task.stream,
                   task.grad, task.boxes, task.channels, shape, task.out);
}

template <typename T>
void launch_any(const Task<T>& task, bool channels_last) {
    const int64_t elements = task.batch * task.channels * task.size();
    SP_FAST_LAUNCH((spread_any<T>), static_cast<unsigned>(ceil_div(elements, 256)), 256, 0, task.stream,
                   task.grad, task.boxes, task.channels, elements, channels_last, task.out);
}

template <typename T>
void launch(const Task<T>& task, bool channels_last) {
    if (task.boxes.number > kMostBoxes) return launch_any(task, channels_last);
    if (channels_last) {
        if (task.channels * int64_t(sizeof(T)) % 16 == 0) return launch_cells<16 / sizeof(T)>(task);
        if (sizeof(T) == 2 && task.channels % 2 == 0) return launch_cells<2>(task);
        return launch_cells<1>(task);
    }
    const int width = task.boxes.width;
    if (width <= ColumnsOf<T, 2>::kWindow) return launch_planes<2>(task);
    if (width <= ColumnsOf<T, 4>::kWindow) return launch_planes<4>(task);
    if (width <= ColumnsOf<T, 6>::kWindow) return launch_planes<6>(task);
    return launch_planes<12>(task);
}

}  // namespace

void launch_roi_average_pool_backward(const void* grad, Element element, int64_t batch, int64_t channels,
                                      const RoiBoxes& boxes, bool channels_last, int multiprocessors,
                                      void* out, cudaStream_t stream) {
    if (batch * channels == 0) return;
    const auto run = [&](auto type) {
        using T = decltype(type);
        const Task<T> task = {static_cast<const T*>(grad), batch, channels, boxes, multiprocessors,
                              static_cast<T*>(out),        stream};
        if constexpr (sizeof(T) == 8) {
            launch_any(task, channels_last);
        } else {
            launch(task, channels_last);
        }
    };
    switch (element) {
        case Element::kFloat:
            return run(float());
        case Element::kHalf:
            return run(__half());
        case Element::kBFloat16:
            return run(__nv_bfloat16());
        case Element::kDouble:
            return run(double());
    }
}

}  // namespace sp_fast::cuda
