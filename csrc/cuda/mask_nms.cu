#include "mask_nms.cuh"
#include "mask_overlap.cuh"
#include "mask_table.cuh"

namespace sp_fast::cuda {
namespace {

// More masks than this are sorted before the kernel runs, and its lists are in global memory.
constexpr int64_t kMaxSorted = 8192;
constexpr int kGroup = 32;  // candidates per round
constexpr int kGroupBytes = kGroup * 4;

// Where the words of an image's masks are: in shared memory, in global memory, in global memory with the
// lists there too, or replaced by a table of counts.
enum class Source { kShared, kGlobal, kMany, kTable };

// Fewer warps, so more registers per thread, where lists are in global memory.
__host__ __device__ constexpr int most_warps(Source source) { return source == Source::kMany ? 16 : 32; }

// Words from one mask to the next in shared memory: odd, to avoid bank conflicts.
__host__ __device__ constexpr int64_t shared_stride(int64_t size) { return size | 1; }

// Words in shared memory, with room to start at the same offset modulo 16 bytes as in global memory.
__host__ __device__ constexpr int64_t shared_words(int64_t masks, int64_t size) {
    return ceil_div(masks * shared_stride(size) + 3, 4) * 4;
}

// Bytes of the keys, whose memory areas, a list and bits take over after sorting.
__host__ __device__ constexpr int64_t key_bytes(int64_t masks) { return masks * 8 + 16; }

int64_t state_bytes(int64_t masks) { return kGroupBytes + key_bytes(masks) + masks * 2; }

bool fits_shared(int64_t masks, int64_t size, int64_t shared_limit) {
    return masks <= kMaxSorted && shared_words(masks, size) * 4 + state_bytes(masks) <= shared_limit;
}

struct Arguments {
    const unsigned* words;  // [B, M, size]
    const float* score;     // [B, M]
    const int64_t* order;   // [B, M]
    const int* table;       // [B, M, M]
    int* scratch;           // [B, 4 M]
    int64_t* kept;          // [B, max_masks]
    int masks, size;
    double threshold;
    int64_t min_area, max_masks;
};

// Masks of one image.
template <Source kSource>
struct Masks {
    const unsigned* words;
    const int* table;
    int number, size;

    __device__ const unsigned* row(int mask) const {
        if constexpr (kSource == Source::kShared) {
            return words + mask * static_cast<int>(shared_stride(size));
        } else {
            return words + int64_t(mask) * size;
        }
    }

    // Counts common cells; lane 4 g + t passes column g, and gets the counts of rows g and g + 8 with columns
    // 2 t and 2 t + 1.
    __device__ void common(int (&counts)[4], int row_0, int row_1, int column) const {
        if constexpr (kSource == Source::kTable) {
            const int first = threadIdx.x % 4 * 8;
            const int column_0 = __shfl_sync(kAllLanes, column, first);
            const int column_1 = __shfl_sync(kAllLanes, column, first + 4);
            counts[0] = table[int64_t(row_0) * number + column_0];
            counts[1] = table[int64_t(row_0) * number + column_1];
            counts[2] = table[int64_t(row_1) * number + column_0];
            counts[3] = table[int64_t(row_1) * number + column_1];
        } else {
            int found[1][1][4] = {};
            const unsigned* const rows[1][2] = {{row(row_0), row(row_1)}};
            const unsigned* const columns[1] = {row(column)};
            common_cells(found, rows, columns, size);
#pragma unroll
            for (int i = 0; i < 4; ++i) counts[i] = found[0][0][i];
        }
    }

    // Counts areas; lane 4 g + t gets those of rows g and g + 8.
    __device__ void areas(int row_0, int row_1, int& area_0, int& area_1) const {
        if constexpr (kSource == Source::kTable) {
            area_0 = table[int64_t(row_0) * number + row_0];
            area_1 = table[int64_t(row_1) * number + row_1];
        } else {
            int found[1][1][4] = {};
            const unsigned* const rows[1][2] = {{row(row_0), row(row_1)}};
            const unsigned* const ones[1] = {nullptr};
            common_cells(found, rows, ones, size);
            area_0 = found[0][0][0];
            area_1 = found[0][0][2];
        }
    }
};

// Whether the IoU in fp64 is above the threshold. fp32 decides most pairs: its error is far below the margin.
__device__ __forceinline__ bool overlap(int common, int area, int other, double threshold) {
    const unsigned all =
        static_cast<unsigned>(area) + static_cast<unsigned>(other) - static_cast<unsigned>(common);
    const float over =
        fmaf(-static_cast<float>(threshold), static_cast<float>(all), static_cast<float>(common));
    if (fabsf(over) > 1e-6f * static_cast<float>(all)) return over > 0;
    return static_cast<double>(common) / static_cast<double>(max(all, 1u)) > threshold;
}

// Copies an image's words to shared memory, at the same offset modulo 16 bytes as in global memory; returns
// where they begin.
__device__ const unsigned* copy_words(const unsigned* words, int masks, int size, unsigned* shared) {
    if (size % 2 == 1) {
        unsigned* const to = shared + reinterpret_cast<uintptr_t>(words) / 4 % 4;
        const int number = masks * size;
        const int head = min(number, static_cast<int>((shared + 4 - to) % 4)), packs = (number - head) / 4;
        for (int i = threadIdx.x; i < packs; i += blockDim.x)
            copy_16(to + head + 4 * i, words + head + 4 * i);
        for (int i = threadIdx.x; i < number - 4 * packs; i += blockDim.x) {
            const int word = i < head ? i : i + 4 * packs;
            copy_4(to + word, words + word);
        }
        copy_commit();
        return to;
    }
    const int lane = threadIdx.x % 32, stride = static_cast<int>(shared_stride(size));
    for (int mask = threadIdx.x / 32; mask < masks; mask += blockDim.x / 32) {
        for (int i = lane; i < size; i += 32) copy_4(shared + mask * stride + i, words + mask * size + i);
    }
    copy_commit();
    return shared;
}

// Copies the elements whose bits are set from one list to the other, in order, and returns their number.
// Called by all threads of the block; barriers are the caller's responsibility.
template <typename Index>
__device__ int compact(const Index* from, Index* to, const unsigned* bits, int number) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int words = static_cast<int>(ceil_div(number, 32));
    int total = 0;
    for (int first = 0; first < words; first += 32) {
        unsigned mine = first + lane < words ? bits[first + lane] : 0;
        if (first + lane == words - 1 && number % 32 != 0) mine &= (1u << number % 32) - 1;
        int through = __popc(mine);  // bits up to this lane's word
#pragma unroll
        for (int by = 1; by < 32; by *= 2) {
            const int below = __shfl_up_sync(kAllLanes, through, by);
            if (lane >= by) through += below;
        }
        for (int k = warp; k < min(32, words - first); k += warps) {
            const unsigned here = __shfl_sync(kAllLanes, mine, k);
            const int end = total + __shfl_sync(kAllLanes, through, k);
            if (here >> lane & 1) to[end - __popc(here >> lane)] = from[(first + k) * 32 + lane];
        }
        total += __shfl_sync(kAllLanes, through, 31);
    }
    return total;
}

// Each block processes the masks of an image. `open` lists the masks that no kept mask overlaps, best first.
// In each round the best 32 of them are compared with each other, every warp finds which of these are kept,
// and the rest of the list is compared with them: kept times open comparisons instead of all pairs.
template <Source kSource>
__global__ void __launch_bounds__(32 * most_warps(kSource), 1) keep_masks(const Arguments of) {
    using Index = std::conditional_t<kSource == Source::kMany, int, unsigned short>;
    constexpr Index kNone = static_cast<Index>(-1);  // a mask whose score is NaN
    SP_FAST_DYNAMIC_SHARED(shared);
    unsigned* const overlapped = reinterpret_cast<unsigned*>(shared);  // by candidate: later ones it overlaps
    const int number = of.masks, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int64_t image = blockIdx.x;
    const float* const score = of.score + image * number;
    Masks<kSource> masks{of.words + image * number * of.size, of.table, number, of.size};
    int64_t* const result = of.kept + image * of.max_masks;
    Index *open, *next;
    int* area;
    unsigned short* tiles;  // bits of the masks that remain, 16 masks at a time

    if constexpr (kSource == Source::kMany) {
        open = of.scratch + image * 4 * number;
        next = open + number;
        area = next + number;
        tiles = reinterpret_cast<unsigned short*>(area + number);
        for (int i = threadIdx.x; i < number; i += blockDim.x) {
            const int64_t mask = of.order[image * number + i];
            open[i] = isnan(score[mask]) ? kNone : static_cast<Index>(mask);
        }
    } else {
        unsigned char* at = shared + kGroupBytes;
        if constexpr (kSource == Source::kShared) {
            masks.words = copy_words(masks.words, number, of.size, reinterpret_cast<unsigned*>(at));
            at += shared_words(number, of.size) * 4;
        }
        uint64_t* const keys = reinterpret_cast<uint64_t*>(at);
        open = reinterpret_cast<Index*>(at + key_bytes(number));
        area = reinterpret_cast<int*>(at);
        tiles = reinterpret_cast<unsigned short*>(area + number);
        next = reinterpret_cast<Index*>(tiles + ceil_div(number, 32) * 2);
        for (int i = threadIdx.x; i < number; i += blockDim.x) keys[i] = score_key(score[i], i);
        __syncthreads();
        sort_keys(keys, number);
        for (int i = threadIdx.x; i < number; i += blockDim.x) {
            open[i] = is_nan_key(keys[i]) ? kNone : static_cast<Index>(keys[i]);
        }
        if constexpr (kSource == Source::kShared) copy_wait<0>();
        if constexpr (kSource == Source::kTable) masks.table += image * number * number;
    }
    __syncthreads();

    for (int tile = warp; tile * 16 < number; tile += warps) {
        const int row = tile * 16 + g;
        int area_0, area_1;
        masks.areas(min(row, number - 1), min(row + 8, number - 1), area_0, area_1);
        if (t == 0 && row < number) area[row] = area_0;
        if (t == 0 && row + 8 < number) area[row + 8] = area_1;
    }
    __syncthreads();
    const unsigned* const bits = reinterpret_cast<const unsigned*>(tiles);
    for (int word = warp; word * 32 < number; word += warps) {
        const int i = word * 32 + lane;
        const bool eligible = i < number && open[i] != kNone && area[open[i]] >= of.min_area;
        const unsigned ballot = __ballot_sync(kAllLanes, eligible);
        if (lane < 2) tiles[2 * word + lane] = static_cast<unsigned short>(ballot >> 16 * lane);
    }
    __syncthreads();
    int left = compact(open, next, bits, number);
    __syncthreads();

    int64_t kept = 0;
    while (left > 0) {
        Index* const spare = open;
        open = next;
        next = spare;
        const int group = min(left, kGroup);
        // Tiles of 16 x 8 candidates that are not entirely below the diagonal.
        for (int tile = warp; tile < 6; tile += warps) {
            const int row = tile < 4 ? 0 : 16, column = tile < 4 ? tile * 8 : tile * 8 - 16;
            if (row >= group || column >= group) continue;
            const int row_0 = open[min(row + g, group - 1)], row_1 = open[min(row + g + 8, group - 1)];
            const int column_g = open[min(column + g, group - 1)];
            int counts[4];
            masks.common(counts, row_0, row_1, column_g);
            unsigned found[2] = {0, 0};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int other = open[min(column + 2 * t + i % 2, group - 1)];
                if (overlap(counts[i], area[i < 2 ? row_0 : row_1], area[other], of.threshold)) {
                    found[i / 2] |= 1u << (2 * t + i % 2);
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                found[i] |= __shfl_xor_sync(kAllLanes, found[i], 1);
                found[i] |= __shfl_xor_sync(kAllLanes, found[i], 2);
                if (t == i) {
                    reinterpret_cast<unsigned char*>(overlapped)[4 * (row + g + 8 * i) + column / 8] =
                        static_cast<unsigned char>(found[i]);
                }
            }
        }
        __syncthreads();

        // Every warp does the same. Some bits of decided or missing candidates were never written; they have
        // no effect.
        const unsigned mine_overlaps = overlapped[lane];
        unsigned undecided = group == 32 ? ~0u : (1u << group) - 1, chosen = 0;
        int fresh = 0, mine = 0;  // number of chosen candidates; the lane-th of them
        const int room = static_cast<int>(min(of.max_masks - kept, int64_t(kGroup)));
        while (undecided != 0 && fresh < room) {
            const int first = __ffs(static_cast<int>(undecided)) - 1;
            undecided &= ~(__shfl_sync(kAllLanes, mine_overlaps, first) | 1u << first);
            chosen |= 1u << first;
            if (lane == fresh) mine = first;
            ++fresh;
        }
        mine = open[mine];
        if (warp == 0 && lane < fresh) result[kept + lane] = mine;
        kept += fresh;
        left -= group;
        if (left == 0 || kept == of.max_masks) break;

        const Index* const rest = open + group;
        for (int tile = warp; tile * 16 < left; tile += warps) {
            const int row = tile * 16 + g;
            const int row_0 = rest[min(row, left - 1)], row_1 = rest[min(row + 8, left - 1)];
            const int area_0 = area[row_0], area_1 = area[row_1];
            unsigned gone = 0;
            for (int column = 0; column < fresh; column += 8) {
                int counts[4];
                masks.common(counts, row_0, row_1, __shfl_sync(kAllLanes, mine, min(column + g, fresh - 1)));
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int other = __shfl_sync(kAllLanes, mine, min(column + 2 * t + i % 2, fresh - 1));
                    if (overlap(counts[i], i < 2 ? area_0 : area_1, area[other], of.threshold)) {
                        gone |= 1u << (g + i / 2 * 8);
                    }
                }
            }
            gone = __reduce_or_sync(kAllLanes, gone);
            if (lane == 0) tiles[tile] = static_cast<unsigned short>(~gone);
        }
        __syncthreads();
        left = compact(rest, next, bits, left);
        __syncthreads();
    }
    for (int64_t i = kept + threadIdx.x; i < of.max_masks; i += blockDim.x) result[i] = -1;
}

bool uses_table(const MaskNms& nms, int64_t shared_limit) {
    return nms.sorts() && !fits_shared(nms.masks, nms.size, shared_limit) && wants_table(nms.masks, nms.size);
}

template <Source kSource>
void launch(const MaskNms& nms, int64_t shared, const Arguments& of, cudaStream_t stream) {
    // One warp per 16 masks.
    const int64_t warps = max(int64_t(1), min(int64_t(most_warps(kSource)), ceil_div(nms.masks, 16)));
    SP_FAST_LAUNCH(keep_masks<kSource>, static_cast<unsigned>(nms.batch), static_cast<unsigned>(32 * warps),
                   static_cast<size_t>(shared), stream, of);
}

}  // namespace

bool MaskNms::sorts() const { return masks <= kMaxSorted; }

int64_t MaskNms::scratch_size(int64_t shared_limit) const {
    if (!sorts()) return batch * masks * 4;
    return uses_table(*this, shared_limit) ? batch * masks * masks : 0;
}

void launch_mask_nms(const MaskNms& nms, int64_t shared_limit, cudaStream_t stream) {
    if (nms.batch == 0) return;
    const Arguments of{reinterpret_cast<const unsigned*>(nms.words),
                       nms.score,
                       nms.order,
                       nms.scratch,
                       nms.scratch,
                       nms.kept,
                       static_cast<int>(nms.masks),
                       static_cast<int>(nms.size),
                       nms.iou_threshold,
                       nms.min_area,
                       nms.max_masks};
    const int64_t state = state_bytes(nms.masks);
    if (!nms.sorts()) {
        launch<Source::kMany>(nms, kGroupBytes, of, stream);
    } else if (fits_shared(nms.masks, nms.size, shared_limit)) {
        launch<Source::kShared>(nms, shared_words(nms.masks, nms.size) * 4 + state, of, stream);
    } else if (uses_table(nms, shared_limit)) {
        launch_table(nms.words, nms.batch, nms.masks, nms.size, nms.scratch, stream);
        launch<Source::kTable>(nms, state, of, stream);
    } else {
        launch<Source::kGlobal>(nms, state, of, stream);
    }
}

}  // namespace sp_fast::cuda
