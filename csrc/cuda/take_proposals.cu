#include "take_proposals.cuh"

namespace sp_fast::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T>
__device__ __forceinline__ void copy_row(const T* from, int64_t number, bool real, T* to) {
#pragma unroll 2
    for (int64_t i = threadIdx.x; i < number; i += kThreads) to[i] = real ? from[i] : T{};
}

// One block per proposal; T is the widest unit of which a vector is a multiple.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    take_kernel(const ProposalTables from, const int64_t* __restrict__ chosen, int64_t most,
                int32_t* __restrict__ words, float* __restrict__ score, T* __restrict__ vectors,
                int64_t* __restrict__ count) {
    const int64_t row = blockIdx.x, image = row / most;
    const int64_t index = chosen[row];
    const bool real = index >= 0 && index < from.seeds;
    const int64_t source = image * from.seeds + (real ? index : 0);
    copy_row(from.words + source * from.words_per_mask, from.words_per_mask, real,
             words + row * from.words_per_mask);
    const int64_t units = from.bytes_per_vector / int64_t(sizeof(T));
    copy_row(static_cast<const T*>(from.vectors) + source * units, units, real, vectors + row * units);
    if (threadIdx.x == 0) score[row] = real ? from.score[source] : 0;
    if (row % most == 0 && threadIdx.x < 32) {
        int number = 0;
        for (int64_t k = threadIdx.x; k < most; k += 32)
            number += chosen[row + k] >= 0 && chosen[row + k] < from.seeds;
        number = __reduce_add_sync(kAllLanes, number);
        if (threadIdx.x == 0) count[image] = number;
    }
}

}  // namespace

void launch_take_proposals(const ProposalTables& from, const int64_t* chosen, int64_t most, int32_t* words,
                           float* score, void* vectors, int64_t* count, cudaStream_t stream) {
    const int64_t rows = from.batch * most;
    if (rows == 0) return;
    const auto blocks = static_cast<unsigned>(rows);
    const auto odd =
        reinterpret_cast<uintptr_t>(from.vectors) | static_cast<uintptr_t>(from.bytes_per_vector);
    if (odd % 16 == 0) {
        SP_FAST_LAUNCH(take_kernel<uint4>, blocks, kThreads, 0, stream, from, chosen, most, words, score,
                       static_cast<uint4*>(vectors), count);
    } else if (odd % 4 == 0) {
        SP_FAST_LAUNCH(take_kernel<unsigned>, blocks, kThreads, 0, stream, from, chosen, most, words, score,
                       static_cast<unsigned*>(vectors), count);
    } else {
        SP_FAST_LAUNCH(take_kernel<unsigned short>, blocks, kThreads, 0, stream, from, chosen, most, words,
                       score, static_cast<unsigned short*>(vectors), count);
    }
}

}  // namespace sp_fast::cuda
