#include "mask_overlap.cuh"
#include "mask_table.cuh"
#include "matrix_nms.cuh"

namespace sp_fast::cuda {
namespace {

// More masks are sorted before the kernels run: comparing all pairs then takes far longer than sorting.
constexpr int64_t kMaxSorted = 2048;
constexpr int kSortThreads = 512;
constexpr int kTile = 32;  // a warp compares 32 masks with 32 better ones
constexpr int kWarps = 8;

enum class Pass { kMost, kGaussian, kLinear };

struct Arguments {
    const unsigned* words;  // [B, M, size]
    const float* score;     // [B, M]
    const int64_t* given;   // order given by the caller, [B, M] or null
    const int* table;       // [B, M, M] or null
    int* order;             // [B, M]
    int* area;              // [B, M]
    float* most;            // [B, M], sorted: the largest IoU with a better mask
    int* usable;            // [B], number of masks whose score is not NaN; they come first in order
    float* decayed;         // [B, M]
    int64_t batch;
    int masks, size, tiles;
    int chunk;  // words of each mask in shared memory at a time
    float sigma;
};

// The first blocks sort the masks of one image each; the others count areas, one warp per mask.
__global__ void __launch_bounds__(kSortThreads) prepare(const Arguments of) {
    SP_FAST_DYNAMIC_SHARED(shared);
    const int64_t number = of.masks;
    if (blockIdx.x >= of.batch) {
        const int64_t mask = (blockIdx.x - of.batch) * (kSortThreads / 32) + threadIdx.x / 32;
        if (mask >= of.batch * number) return;
        const unsigned* words = of.words + mask * of.size;
        int area = 0;
#pragma unroll 4
        for (int i = threadIdx.x % 32; i < of.size; i += 32) area += __popc(words[i]);
        area = __reduce_add_sync(kAllLanes, area);
        if (threadIdx.x % 32 == 0) of.area[mask] = area;
        return;
    }
    const int64_t first = blockIdx.x * number;
    uint64_t* const keys = reinterpret_cast<uint64_t*>(shared);
    int usable = 0;
    for (int64_t start = 0; start < number; start += kSortThreads) {
        const int64_t i = start + threadIdx.x;
        const float score = i < number ? of.score[first + i] : 0.0f;
        if (of.given == nullptr && i < number) keys[i] = score_key(score, static_cast<unsigned>(i));
        usable += __syncthreads_count(i < number && !isnan(score));
    }
    if (threadIdx.x == 0) of.usable[blockIdx.x] = usable;
    if (of.given == nullptr) sort_keys(keys, static_cast<int>(number));
    for (int64_t i = threadIdx.x; i < number; i += kSortThreads) {
        of.order[first + i] =
            static_cast<int>(of.given == nullptr ? int64_t(keys[i] & 0xffffffffu) : of.given[first + i]);
    }
}

// common / all, rounded like a division, for integers with common <= all and 1 <= all <= 2^24: the steps of a
// division without its branch for extreme numbers.
__device__ __forceinline__ float ratio(float common, float all) {
#ifdef SP_FAST_CUDA_ON_CPU
    float inverse = 1 / all;
#else
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(all));
#endif
    inverse = fmaf(fmaf(-all, inverse, 1.0f), inverse, inverse);
    float quotient = common * inverse;
    quotient = fmaf(fmaf(-all, quotient, common), inverse, quotient);
    return fmaf(fmaf(-all, quotient, common), inverse, quotient);
}

// Copies `here` words of each mask into rows of shared memory; `mask` of lane k is the mask of row k.
template <int kRows>
__device__ __forceinline__ void copy_rows(unsigned* to, int stride, const unsigned* words, int size, int mask,
                                          int here) {
    const int lane = threadIdx.x % 32;
    // A few words past a multiple of 32 are copied for all rows at once.
    const int tail = here % 32 <= 4 ? here % 32 : 0;
#pragma unroll 1
    for (int word = lane; word < here - tail + lane; word += 32) {
        const bool inside = word < here - tail;
#pragma unroll 8
        for (int row = 0; row < kRows; ++row) {
            const int64_t mask_of_row = __shfl_sync(kAllLanes, mask, row);
            if (inside) copy_4(to + row * stride + word, words + mask_of_row * size + word);
        }
    }
#pragma unroll 1
    for (int word = here - tail; word < here; ++word) {
        if (lane < kRows) copy_4(to + lane * stride + word, words + int64_t(mask) * size + word);
    }
}

// Each block compares 32 consecutive masks of the order with all better ones: in the first pass for the
// largest IoU of each, in the second, when that is known for all masks, for the strongest decay. Computing
// IoUs twice takes less time than writing and reading M^2 of them.
template <Pass kPass, bool kTable>
__global__ void __launch_bounds__(32 * kWarps, 2) compare(const Arguments of) {
    SP_FAST_DYNAMIC_SHARED(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int64_t image = blockIdx.x % of.batch;
    const int first = (of.tiles - 1 - static_cast<int>(blockIdx.x / of.batch)) * kTile;  // longest first
    const int number = of.masks, stride = of.chunk | 1;
    const int* const order = of.order + image * number;
    const int* const area = of.area + image * number;
    const unsigned* const words = of.words + image * number * of.size;
    const int* const table = kTable ? of.table + image * number * number : nullptr;
    float* const most = of.most + image * number;
    const int usable = of.usable[image];
    const int better = min(min(first + kTile, number) - 1, usable);
    unsigned* const held_columns = reinterpret_cast<unsigned*>(shared);
    unsigned* const held_rows = held_columns + (1 + warp) * kTile * stride;
    const auto area_of = [&](int mask) { return kTable ? table[int64_t(mask) * number + mask] : area[mask]; };

    const unsigned* const rows[2][2] = {{held_rows + g * stride, held_rows + (g + 8) * stride},
                                        {held_rows + (g + 16) * stride, held_rows + (g + 24) * stride}};
    const unsigned* const column = held_columns + g * stride;
    const unsigned* const columns[4] = {column, column + 8 * stride, column + 16 * stride,
                                        column + 24 * stride};
    float extreme[4][2], column_area[4][2];
    int column_mask[4][2];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            column_mask[c][i] = order[min(first + 8 * c + 2 * t + i, number - 1)];
            column_area[c][i] = static_cast<float>(area_of(column_mask[c][i]));
            extreme[c][i] = kPass == Pass::kLinear ? 1.0f : 0.0f;
        }
    }

    for (int start = 0; start < better; start += kWarps * kTile) {
        const int row_first = start + warp * kTile;
        const bool idle = row_first >= better;
        int counts[2][4][4] = {};
        if constexpr (!kTable) {
            const int mine = order[min(row_first + lane, number - 1)];
            for (int word = 0; word < of.size; word += of.chunk) {
                const int here = min(of.chunk, of.size - word);
                const bool with_columns = start == 0 || here < of.size;  // not loaded yet
                if (with_columns) {
                    __syncthreads();
                    const int from = warp * (kTile / kWarps);
                    const int mask = order[min(first + from + lane % (kTile / kWarps), number - 1)];
                    copy_rows<kTile / kWarps>(held_columns + from * stride, stride, words + word, of.size,
                                              mask, here);
                } else {
                    __syncwarp();
                }
                if (!idle) copy_rows<kTile>(held_rows, stride, words + word, of.size, mine, here);
                copy_commit();
                copy_wait<0>();
                if (with_columns) {
                    __syncthreads();
                } else {
                    __syncwarp();
                }
                if (!idle) common_cells(counts, rows, columns, here);
            }
        }
        if (idle) continue;

        // A tile at the diagonal, or at the end of the usable masks, counts only in part.
        const bool whole = row_first + kTile <= min(first, usable);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int row = row_first + 8 * r + g;
            const int row_mask = order[min(row, number - 1)];
            const int row_area_ = area_of(row_mask);
            const float row_area = static_cast<float>(row_area_);
            // Gaussian: the square of the row's largest IoU. Linear: 1 / (1 - largest IoU), infinite for a
            // duplicate, which adds no decay to that of the mask it repeats.
            float scale = 0;
            if constexpr (kPass != Pass::kMost) {
                const float largest = most[min(row, number - 1)];
                scale = kPass == Pass::kGaussian ? __fmul_rn(largest, largest) : 1 / (1 - largest);
            }
#pragma unroll
            for (int c = 0; c < 4; ++c) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float iou;
                    if constexpr (kTable) {
                        const int64_t at = int64_t(row_mask) * number + column_mask[c][i];
                        const double common = table[at];
                        const double all = double(row_area_) + double(column_area[c][i]) - common;
                        iou = static_cast<float>(common / (all < 1 ? 1.0 : all));
                    } else {
                        const float common = static_cast<float>(counts[r / 2][c][r % 2 * 2 + i]);
                        iou = ratio(common, fmaxf(row_area + column_area[c][i] - common, 1.0f));
                    }
                    float& best = extreme[c][i];
                    const bool counted = whole || (row < usable && row < first + 8 * c + 2 * t + i);
                    if constexpr (kPass == Pass::kMost) {
                        best = fmaxf(best, counted ? iou : 0.0f);
                    } else if constexpr (kPass == Pass::kGaussian) {
                        // Round the square like the row's, so that a duplicate gives 0.
                        best = fmaxf(best, counted ? __fmul_rn(iou, iou) - scale : 0.0f);
                    } else {
                        // fminf ignores NaN, the result of 0 times infinity.
                        best = fminf(best, counted ? (1 - iou) * scale : 1.0f);
                    }
                }
            }
        }
    }

    // Reduce over the lanes of a column, then over the warps.
    const auto combine = [](float a, float b) { return kPass == Pass::kLinear ? fminf(a, b) : fmaxf(a, b); };
    float* const by_warp = reinterpret_cast<float*>(shared);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float best = extreme[c][i];
#pragma unroll
            for (int by = 4; by < 32; by *= 2) best = combine(best, __shfl_xor_sync(kAllLanes, best, by));
            if (g == 0) by_warp[warp * kTile + 8 * c + 2 * t + i] = best;
        }
    }
    __syncthreads();
    const int at = first + lane;
    if (warp != 0 || at >= number) return;
    float best = by_warp[lane];
#pragma unroll
    for (int k = 1; k < kWarps; ++k) best = combine(best, by_warp[k * kTile + lane]);
    if constexpr (kPass == Pass::kMost) {
        most[at] = best;
    } else {
        const float factor = kPass == Pass::kGaussian ? expf(-of.sigma * best) : best;
        const int64_t mask = image * number + order[at];
        of.decayed[mask] = of.score[mask] * factor;
    }
}

template <bool kTable>
void launch_passes(const Arguments& of, bool gaussian, size_t shared, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(of.batch * of.tiles);
    SP_FAST_LAUNCH((compare<Pass::kMost, kTable>), blocks, 32 * kWarps, shared, stream, of);
    if (gaussian) {
        SP_FAST_LAUNCH((compare<Pass::kGaussian, kTable>), blocks, 32 * kWarps, shared, stream, of);
    } else {
        SP_FAST_LAUNCH((compare<Pass::kLinear, kTable>), blocks, 32 * kWarps, shared, stream, of);
    }
}

}  // namespace

bool MatrixNms::sorts() const { return masks <= kMaxSorted; }

int64_t MatrixNms::scratch_size() const {
    const int64_t all = batch * masks;
    return 3 * all + batch + (wants_table(masks, size) ? all * masks : 0);
}

void launch_matrix_nms(const MatrixNms& nms, cudaStream_t stream) {
    const int64_t all = nms.batch * nms.masks;
    if (all == 0) return;
    const bool table = wants_table(nms.masks, nms.size);
    Arguments of{};
    of.words = reinterpret_cast<const unsigned*>(nms.words);
    of.score = nms.score;
    of.given = nms.sorts() ? nullptr : nms.order;
    of.order = nms.scratch;
    of.area = of.order + all;
    of.most = reinterpret_cast<float*>(of.area + all);
    of.usable = of.area + 2 * all;
    of.table = table ? of.usable + nms.batch : nullptr;
    of.decayed = nms.decayed;
    of.batch = nms.batch;
    of.masks = static_cast<int>(nms.masks);
    of.size = static_cast<int>(nms.size);
    of.tiles = static_cast<int>(ceil_div(nms.masks, kTile));
    of.chunk = static_cast<int>(nms.size <= 64 ? nms.size : 32);
    of.sigma = nms.sigma;
    if (table) launch_table(nms.words, nms.batch, nms.masks, nms.size, of.usable + nms.batch, stream);
    const int64_t blocks = nms.batch + (table ? 0 : ceil_div(all, kSortThreads / 32));
    const size_t keys = nms.sorts() ? static_cast<size_t>(nms.masks) * 8 : 0;
    SP_FAST_LAUNCH(prepare, static_cast<unsigned>(blocks), kSortThreads, keys, stream, of);
    const size_t by_warp = sizeof(float) * kWarps * kTile;
    if (table) {
        launch_passes<true>(of, nms.gaussian, by_warp, stream);
    } else {
        const size_t held = sizeof(unsigned) * (1 + kWarps) * kTile * static_cast<size_t>(of.chunk | 1);
        launch_passes<false>(of, nms.gaussian, held, stream);
    }
}

}  // namespace sp_fast::cuda
