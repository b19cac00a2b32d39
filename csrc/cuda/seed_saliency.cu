#include <algorithm>
#include <type_traits>

#include "seed_saliency.cuh"
#include "wide_loads.cuh"

namespace sp_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Smallest norm by which a vector is divided; COSINE_EPS of reference.py.
constexpr float kEps = 1e-8f;

// Transposes planes to vectors of cells through shared memory: reads along cells, writes along channels.

constexpr int kTile = 64;  // cells and channels per block

// Bits: an unsigned integer of the features' size.
template <typename Bits>
__global__ void __launch_bounds__(kThreads)
    copy_cells_kernel(const __grid_constant__ FeatureMaps maps, int64_t first_image, int cell_tiles,
                      int64_t pitch, Bits* __restrict__ out) {
    constexpr int N = 16 / sizeof(Bits);
    // An odd number of words, so that lanes that gather channels have few bank conflicts.
    constexpr int kPitch = kTile + 4 / sizeof(Bits);
    __shared__ Bits tile[kTile][kPitch];
    const int64_t image = first_image + blockIdx.y;
    const int64_t first_channel = static_cast<int64_t>(blockIdx.x / cell_tiles) * kTile;
    const int first_cell = static_cast<int>(blockIdx.x % cell_tiles) * kTile;
    const int cells = maps.height * maps.width;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    int64_t at[kTile / 32];
    bool real[kTile / 32];
#pragma unroll
    for (int k = 0; k < kTile / 32; ++k) {
        const int cell = first_cell + 32 * k + lane, row = cell / maps.width;
        real[k] = cell < cells;
        at[k] = row * maps.row_stride + (cell - row * maps.width) * maps.column_stride;
    }
    const Bits* from = static_cast<const Bits*>(maps.data) + image * maps.batch_stride;
#pragma unroll
    for (int d = 0; d < kTile / kWarps; ++d) {
        const int64_t channel = first_channel + d * kWarps + warp;
#pragma unroll
        for (int k = 0; k < kTile / 32; ++k) {
            Bits value = 0;
            if (real[k] && channel < maps.channels) value = from[channel * maps.channel_stride + at[k]];
            tile[d * kWarps + warp][32 * k + lane] = value;
        }
    }
    __syncthreads();
    constexpr int kGroups = kTile / N;  // groups of channels that are written together
    constexpr int kStep = kThreads / kGroups;
    const int group = threadIdx.x % kGroups;
    const int64_t channel = first_channel + group * N;
    if (channel >= pitch) return;
    Bits* to = out + (image * cells + first_cell) * pitch + channel;
#pragma unroll
    for (int c = threadIdx.x / kGroups; c < kTile; c += kStep) {
        if (first_cell + c >= cells) break;
        unsigned words[4] = {};
#pragma unroll
        for (int d = 0; d < N; ++d) {
            words[d * 4 / N] |= unsigned{tile[group * N + d][c]} << (d * sizeof(Bits) * 8 % 32);
        }
        store_16(to + c * pitch, {words[0], words[1], words[2], words[3]});
    }
}

// One warp per cell.
template <typename T, typename Load>
__global__ void __launch_bounds__(kThreads)
    cell_factors_kernel(CellVectors cells, int64_t pitch, float* __restrict__ factors) {
    constexpr int N = Load::kSize;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (index >= cells.batch * cells.cells) return;
    const int64_t image = index / cells.cells, cell = index - image * cells.cells;
    const T* from = static_cast<const T*>(cells.data) + image * cells.batch_stride + cell * cells.cell_stride;
    float sum = 0;
#pragma unroll 4
    for (int64_t d = lane * N; d < cells.channels; d += 32 * N) {
        const Load value = *reinterpret_cast<const Load*>(from + d);
#pragma unroll
        for (int c = 0; c < N; ++c) sum += value.at(c) * value.at(c);
    }
#pragma unroll
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
    const float norm = sqrtf(sum);
    // This form keeps NaN.
    if (lane == 0) factors[image * pitch + cell] = 1 / (norm < kEps ? kEps : norm);
}

// One warp per row of similarities; each lane takes every 32nd cell, so that a ballot is a word of the mask.

// Iterates over the cells lane, lane + 32, ... of a map.
template <bool kPadded>
struct Walk {
    const int height, width, map_width;
    int cell, left, row = 0, column = 0;

    __device__ __forceinline__ Walk(const Similarities& rows, int64_t image, int lane)
        : height(kPadded ? valid_extent(rows.valid, image, 0, rows.height) : rows.height),
          width(kPadded ? valid_extent(rows.valid, image, 1, rows.width) : rows.width),
          map_width(rows.width),
          cell(lane),
          left(rows.height * rows.width - lane) {
        if (kPadded) {
            row = cell / map_width;
            column = cell - row * map_width;
        }
    }

    __device__ __forceinline__ bool inside() const {
        return kPadded ? row < height && column < width : left > 0;
    }

    __device__ __forceinline__ void step(int rows_down, int columns_on) {
        cell += 32;
        left -= 32;
        if (kPadded) {
            row += rows_down;
            column += columns_on;
            if (column >= map_width) {
                column -= map_width;
                ++row;
            }
        }
    }
};

struct Extent {
    float low, high;
    int numbers;  // count of values that are not NaN

    __device__ __forceinline__ void add(float y) {
        low = fminf(low, y);
        high = fmaxf(high, y);
        numbers += y == y;
    }

    __device__ __forceinline__ void join_lanes() {
#pragma unroll
        for (int by = 16; by > 0; by /= 2) {
            low = fminf(low, __shfl_xor_sync(kAllLanes, low, by));
            high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, by));
        }
        numbers = __reduce_add_sync(kAllLanes, numbers);
    }
};

// The smallest a for which a / span, as rounded, is at least the threshold (approximate for thresholds under
// 2^-126). With it, one comparison per cell gives the same bits as a division.
__device__ float smallest_inside(float threshold, float span) {
    float a = threshold * span;
    for (int i = 0; i < 4 && a > 0; ++i) {
        const float below = __uint_as_float(__float_as_uint(a) - 1);
        if (__fdiv_rn(below, span) < threshold) break;
        a = below;
    }
    for (int i = 0; i < 4 && __fdiv_rn(a, span) < threshold; ++i) {
        a = __uint_as_float(__float_as_uint(a) + 1);
    }
    return a;
}

// Sums y - low over the cells inside the mask, scaled by a power of two so that the sum stays finite.
class Inside {
  public:
    // least: smallest y - low inside the mask; the mask is empty if it is NaN.
    __device__ __forceinline__ Inside(float low, float span, float least)
        : low_(low), span_(span), least_(least) {
        const int exponent = static_cast<int>(__float_as_uint(span_) >> 23);
        scale_ = __uint_as_float(static_cast<unsigned>(max(254 - exponent, 1)) << 23);
    }

    // Adds y if it is inside the mask, and returns whether it is; false for NaN.
    __device__ __forceinline__ bool add(float y) {
        const float a = y - low_;
        const bool inside = a >= least_;
        // A selection, not a branch, so that the result of the comparison need not be kept.
        sum_ = fmaf(inside ? a : 0.0f, scale_, sum_);
        return inside;
    }

    // Mean over all lanes; `mine`: number of cells inside that this lane counted.
    __device__ __forceinline__ float mean(int mine) const {
        float sum = sum_;
#pragma unroll
        for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
        const int number = __reduce_add_sync(kAllLanes, mine);
        return number == 0 ? 0.0f : sum / (span_ * scale_) / static_cast<float>(number);
    }

  private:
    float low_, span_, least_, scale_, sum_ = 0;
};

// kWords > 0: rows of at most kWords words are read once, to registers. 0: rows of any length are read twice.
template <int kWords, bool kPadded, bool kFactors>
__global__ void __launch_bounds__(kThreads)
    threshold_rows_kernel(const __grid_constant__ Similarities rows, int words, float threshold,
                          int32_t* __restrict__ out, float* __restrict__ score) {
    // Warps past the last row repeat it without writing: ballots are cheap only if no thread has returned.
    const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int64_t index = min(task, rows.batch * rows.number - 1);
    const bool writes = task == index;
    const int lane = threadIdx.x % 32;
    const int64_t image = kPadded || kFactors ? index / rows.number : 0;
    const float* from = rows.data + index * rows.pitch;
    const float* factors = kFactors ? rows.factors + image * rows.pitch : nullptr;
    const Walk<kPadded> start(rows, image, lane);
    const int rows_down = 32 / rows.width, columns_on = 32 - rows_down * rows.width;
    const int real = start.height * start.width;
    // NaN marks cells of the padding: it is neither a minimum nor a maximum, and is never inside.
    const float padding = __uint_as_float(0x7fffffffu);
    constexpr int kLoads = kWords > 0 ? kWords : 8;
    const auto read = [&](Walk<kPadded>& walk, float (&y)[kLoads]) {
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
            y[j] = padding;
            if (walk.inside()) {
                y[j] = from[walk.cell];
                if (kFactors) y[j] *= factors[walk.cell];
            }
            walk.step(rows_down, columns_on);
        }
    };
    int32_t* to = out + index * words;

    Extent extent = {__uint_as_float(0x7f800000u), __uint_as_float(0xff800000u), 0};
    float y[kLoads];
    Walk<kPadded> walk = start;
    for (int first = 0; first < (kWords > 0 ? 1 : words); first += kLoads) {
        read(walk, y);
#pragma unroll
        for (int j = 0; j < kLoads; ++j) extent.add(y[j]);
    }
    extent.join_lanes();
    const float span = extent.high - extent.low;
    const bool usable = extent.numbers == real && span > 0 && isfinite(span);
    Inside inside(extent.low, span, usable ? smallest_inside(threshold, span) : padding);
    int area = 0;
    if constexpr (kWords > 0) {
        unsigned mine[(kWords + 31) / 32] = {};
#pragma unroll
        for (int j = 0; j < kWords; ++j) {
            const unsigned word = __ballot_sync(kAllLanes, inside.add(y[j]));
            if (lane == j % 32) mine[j / 32] = word;
        }
#pragma unroll
        for (int k = 0; k < (kWords + 31) / 32; ++k) {
            if (writes && 32 * k + lane < words) to[32 * k + lane] = static_cast<int32_t>(mine[k]);
            area += __popc(mine[k]);
        }
    } else {
        Walk<kPadded> again = start;
        unsigned mine = 0;
        for (int first = 0; first < words; first += kLoads) {
            read(again, y);
#pragma unroll
            for (int j = 0; j < kLoads; ++j) {
                const unsigned word = __ballot_sync(kAllLanes, inside.add(y[j]));
                if (lane == (first + j) % 32) mine = word;
            }
            if ((first + kLoads) % 32 != 0 && first + kLoads < words) continue;
            const int at = first / 32 * 32 + lane;
            if (at < words) {
                if (writes) to[at] = static_cast<int32_t>(mine);
                area += __popc(mine);
            }
        }
    }
    const float mean = inside.mean(area);
    if (writes && lane == 0) score[index] = mean;
}

template <int kWords, bool kPadded>
void launch_rows(const Similarities& rows, int words, float threshold, int32_t* out, float* score,
                 cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(ceil_div(rows.batch * rows.number, kWarps));
    if (rows.factors != nullptr) {
        SP_FAST_LAUNCH((threshold_rows_kernel<kWords, kPadded, true>), blocks, kThreads, 0, stream, rows,
                       words, threshold, out, score);
    } else {
        SP_FAST_LAUNCH((threshold_rows_kernel<kWords, kPadded, false>), blocks, kThreads, 0, stream, rows,
                       words, threshold, out, score);
    }
}

template <int kWords>
void launch_rows(const Similarities& rows, int words, float threshold, int32_t* out, float* score,
                 cudaStream_t stream) {
    if (rows.valid.data != nullptr) {
        launch_rows<kWords, true>(rows, words, threshold, out, score, stream);
    } else {
        launch_rows<kWords, false>(rows, words, threshold, out, score, stream);
    }
}

}  // namespace

void launch_copy_cells(const FeatureMaps& maps, int64_t pitch, void* cells, cudaStream_t stream) {
    const int64_t cell_tiles = ceil_div(int64_t{maps.height} * maps.width, kTile);
    const int64_t blocks = cell_tiles * ceil_div(pitch, kTile);
    if (blocks > INT32_MAX) throw std::runtime_error("seed_saliency: too many channels and cells");
    for (int64_t image = 0; image < maps.batch; image += 65535) {
        const dim3 grid(static_cast<unsigned>(blocks),
                        static_cast<unsigned>(std::min<int64_t>(maps.batch - image, 65535)));
        if (maps.element == Element::kFloat) {
            SP_FAST_LAUNCH((copy_cells_kernel<uint32_t>), grid, kThreads, 0, stream, maps, image,
                           static_cast<int>(cell_tiles), pitch, static_cast<uint32_t*>(cells));
        } else {
            SP_FAST_LAUNCH((copy_cells_kernel<uint16_t>), grid, kThreads, 0, stream, maps, image,
                           static_cast<int>(cell_tiles), pitch, static_cast<uint16_t*>(cells));
        }
    }
}

void launch_cell_factors(const CellVectors& cells, int64_t pitch, float* factors, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(ceil_div(cells.batch * cells.cells, kWarps));
    with_element(cells, [&](auto* from) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
        bool wide = reinterpret_cast<uintptr_t>(cells.data) % 16 == 0;
        for (const int64_t n : {cells.channels, cells.batch_stride, cells.cell_stride}) {
            wide = wide && n % Wide<T>::kSize == 0;
        }
        if (wide) {
            SP_FAST_LAUNCH((cell_factors_kernel<T, Wide<T>>), blocks, kThreads, 0, stream, cells, pitch,
                           factors);
        } else {
            SP_FAST_LAUNCH((cell_factors_kernel<T, Narrow<T>>), blocks, kThreads, 0, stream, cells, pitch,
                           factors);
        }
    });
}

void launch_threshold_rows(const Similarities& rows, float threshold, int32_t* words, float* score,
                           cudaStream_t stream) {
    if (rows.batch * rows.number == 0) return;
    const int per_row = static_cast<int>(ceil_div(int64_t{rows.height} * rows.width, 32));
    if (per_row <= 12) {
        launch_rows<12>(rows, per_row, threshold, words, score, stream);
    } else if (per_row <= 36) {
        launch_rows<36>(rows, per_row, threshold, words, score, stream);
    } else if (per_row <= 64) {
        launch_rows<64>(rows, per_row, threshold, words, score, stream);
    } else {
        launch_rows<0>(rows, per_row, threshold, words, score, stream);
    }
}

}  // namespace sp_fast::cuda
