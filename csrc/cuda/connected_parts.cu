#include "connected_parts.cuh"

namespace sp_fast::cuda {
namespace {

constexpr int kWarps = 2, kThreads = 32 * kWarps;
// Blocks that share the scratch in global memory, each with one mask at a time.
constexpr int64_t kScratchBlocks = 256;
constexpr int kMostCells = 1 << 30;

using Key = unsigned long long;

struct Arguments {
    const unsigned* words;
    int64_t masks, size, max_parts;
    int height, width, min_area, reach;
    int* scratch;
    unsigned* out;
    int64_t* count;
};

// Cells [begin, end) of one row.
struct Run {
    int begin, end;
};

// The first cell in [from, end) that is inside (flip 0) or outside (flip ~0) the mask; `end` if there is
// none.
__device__ int next_cell(const unsigned* words, int from, int end, unsigned flip) {
    while (from < end) {
        const unsigned bits = (words[from / 32] ^ flip) >> from % 32;
        if (bits != 0) return min(from + __ffs(static_cast<int>(bits)) - 1, end);
        from += 32 - from % 32;
    }
    return end;
}

// The first run in [from, end); it is empty if there is none.
__device__ Run next_run(const unsigned* words, int from, int end) {
    const int begin = next_cell(words, from, end, 0);
    return {begin, next_cell(words, begin, end, ~0u)};
}

// A place for every run that a mask can have: two runs of a row begin at least two cells apart.
__host__ __device__ constexpr int64_t slots_of(int64_t height, int64_t width) {
    return height * ceil_div(width, 2);
}

// Reads a value that other threads may be changing.
__device__ __forceinline__ int peek(int* at) { return atomicAdd(at, 0); }

// A forest over the runs of a mask, by slot: a parent is an earlier run of the same part, or the run itself.
struct Forest {
    int* parent;
    int width;

    __device__ int slot(int y, const Run& run) const {
        return y * ((width + 1) / 2) + (run.begin - y * width) / 2;
    }

    __device__ int root(int slot) const {
        for (int above = peek(parent + slot); above != slot; above = peek(parent + slot)) slot = above;
        return slot;
    }

    // Links the later root to the earlier one; if another thread was faster, joins with what it linked.
    __device__ void join(int a, int b) const {
        while (true) {
            a = root(a);
            b = root(b);
            if (a == b) return;
            const int later = max(a, b), earlier = min(a, b);
            const int before = atomicMin(parent + later, earlier);
            if (before == later) return;
            a = before;
            b = earlier;
        }
    }

    // Joins the runs of row y with those of the row above.
    __device__ void join_rows(const unsigned* words, int y, int reach) const {
        const int start = y * width, end = start + width;
        Run upper = next_run(words, start - width, start), lower = next_run(words, start, end);
        while (upper.begin < start && lower.begin < end) {
            if (upper.begin + width < lower.end + reach && lower.begin < upper.end + width + reach) {
                join(slot(y - 1, upper), slot(y, lower));
            }
            if (upper.end + width < lower.end) {
                upper = next_run(words, upper.end, start);
            } else {
                lower = next_run(words, lower.end, end);
            }
        }
    }
};

// Calls each(slot, run) for every run; each thread has its rows.
template <typename F>
__device__ void for_each_run(const unsigned* words, const Forest& forest, int height, F each) {
    for (int y = threadIdx.x; y < height; y += kThreads) {
        const int end = (y + 1) * forest.width;
        for (Run run = next_run(words, y * forest.width, end); run.begin < end;
             run = next_run(words, run.end, end)) {
            each(forest.slot(y, run), run);
        }
    }
}

// The largest key of the block; called by all of its threads.
__device__ Key largest(Key key, Key (&of_warps)[kWarps]) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) {
        const Key other = __shfl_xor_sync(kAllLanes, key, by);
        key = other > key ? other : key;
    }
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = key;
    __syncthreads();
    for (const Key other : of_warps) key = other > key ? other : key;
    __syncthreads();
    return key;
}

// Ranks the roots, whose values are their areas, negated; `INT_MIN + rank` replaces them. Returns how many.
__device__ int64_t rank_parts(int* value, int slots, const Arguments& of, Key (&of_warps)[kWarps]) {
    for (int64_t rank = 0; rank < of.max_parts; ++rank) {
        Key best = 0;
        for (int slot = threadIdx.x; slot < slots; slot += kThreads) {
            const int area = value[slot] < -kMostCells ? 0 : -value[slot];
            if (area > 0 && area >= of.min_area) {
                const Key key = (Key(area) << 32) | static_cast<unsigned>(INT32_MAX - slot);
                best = key > best ? key : best;
            }
        }
        best = largest(best, of_warps);
        if (best == 0) return rank;
        // The thread that reads the slot writes it.
        const int chosen = INT32_MAX - static_cast<int>(best & 0xffffffffu);
        if (chosen % kThreads == static_cast<int>(threadIdx.x))
            value[chosen] = INT32_MIN + static_cast<int>(rank);
    }
    return of.max_parts;
}

__device__ void set_cells(unsigned* words, Run run) {
    while (run.begin < run.end) {
        const int bit = run.begin % 32, number = min(32 - bit, run.end - run.begin);
        atomicOr(words + run.begin / 32, ~0u >> (32 - number) << bit);
        run.begin += number;
    }
}

// One block per mask, one thread per row: runs that touch are joined in any order, which gives every part the
// same root, its first run.
template <bool kShared>
__global__ void __launch_bounds__(kThreads) find_parts(const Arguments of) {
    SP_FAST_DYNAMIC_SHARED(shared);
    __shared__ Key of_warps[kWarps];
    const int slots = static_cast<int>(slots_of(of.height, of.width));
    int* const value = kShared ? reinterpret_cast<int*>(shared) : of.scratch + int64_t(blockIdx.x) * slots;
    const Forest forest{value, of.width};
    for (int64_t mask = blockIdx.x; mask < of.masks; mask += gridDim.x) {
        const unsigned* const words = of.words + mask * of.size;
        unsigned* const out = of.out + mask * of.max_parts * of.size;
        for (int slot = threadIdx.x; slot < slots; slot += kThreads) value[slot] = slot;
        for (int64_t i = threadIdx.x; i < of.max_parts * of.size; i += kThreads) out[i] = 0;
        __syncthreads();
        for (int y = threadIdx.x + 1; y < of.height; y += kThreads) forest.join_rows(words, y, of.reach);
        __syncthreads();
        for_each_run(words, forest, of.height,
                     [&](int slot, const Run&) { atomicMin(value + slot, forest.root(slot)); });
        __syncthreads();
        // From here on the value of a root is its area, negated.
        for_each_run(words, forest, of.height, [&](int slot, const Run& run) {
            if (value[slot] == slot) value[slot] = run.begin - run.end;
        });
        __syncthreads();
        for_each_run(words, forest, of.height, [&](int slot, const Run& run) {
            const int root = peek(value + slot);
            if (root >= 0) atomicAdd(value + root, run.begin - run.end);
        });
        __syncthreads();
        const int64_t number = rank_parts(value, slots, of, of_warps);
        if (threadIdx.x == 0) of.count[mask] = number;
        __syncthreads();
        for_each_run(words, forest, of.height, [&](int slot, const Run& run) {
            const int code = value[slot] < 0 ? value[slot] : value[value[slot]];
            if (code < -kMostCells) set_cells(out + (int64_t(code) - INT32_MIN) * of.size, run);
        });
        __syncthreads();
    }
}

bool fits_shared(const ConnectedParts& of, int64_t shared_limit) {
    constexpr int64_t kReserved = 1 << 10;  // of_warps
    return slots_of(of.height, of.width) * 4 + kReserved <= shared_limit;
}

int64_t blocks_with_scratch(int64_t masks) { return masks < kScratchBlocks ? masks : kScratchBlocks; }

}  // namespace

int64_t ConnectedParts::scratch_size(int64_t shared_limit) const {
    return fits_shared(*this, shared_limit) ? 0 : blocks_with_scratch(masks) * slots_of(height, width);
}

void launch_connected_parts(const ConnectedParts& of, int64_t shared_limit, cudaStream_t stream) {
    if (of.masks == 0) return;
    Arguments arguments{};
    arguments.words = reinterpret_cast<const unsigned*>(of.words);
    arguments.masks = of.masks;
    arguments.size = of.size;
    arguments.max_parts = of.max_parts;
    arguments.height = of.height;
    arguments.width = of.width;
    arguments.min_area = static_cast<int>(of.min_area < kMostCells ? of.min_area : kMostCells + 1);
    arguments.reach = of.diagonal;
    arguments.scratch = of.scratch;
    arguments.out = reinterpret_cast<unsigned*>(of.out);
    arguments.count = of.count;
    if (fits_shared(of, shared_limit)) {
        const auto bytes = static_cast<size_t>(slots_of(of.height, of.width) * 4);
        SP_FAST_LAUNCH(find_parts<true>, static_cast<unsigned>(of.masks), kThreads, bytes, stream, arguments);
    } else {
        SP_FAST_LAUNCH(find_parts<false>, static_cast<unsigned>(blocks_with_scratch(of.masks)), kThreads, 0,
                       stream, arguments);
    }
}

}  // namespace sp_fast::cuda
