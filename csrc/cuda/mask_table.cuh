// A table of the cells common to all pairs of masks of an image, used if masks have many words and there are
// no more masks than words: the block of an image would otherwise read all masks again and again.
#pragma once

#include "mask_overlap.cuh"

namespace sp_fast::cuda {

constexpr int kTableTile = 32;
constexpr int kTableWarps = 8;
constexpr int kTableChunk = 32;                // words of each mask that a warp holds
constexpr int kTableStride = kTableChunk + 1;  // odd: no bank conflicts

// Whether to use the table, which is then no larger than the masks.
inline bool wants_table(int64_t masks, int64_t size) { return size > 4 * kTableChunk && size >= masks; }

// Each block counts 32 x 32 pairs. Its warps divide the words among them, then add up their counts.
template <int = 0>
__global__ void __launch_bounds__(32 * kTableWarps)
    count_table(const unsigned* __restrict__ words, int masks, int size, int tiles, int* __restrict__ table) {
    SP_FAST_DYNAMIC_SHARED(shared);
    const int64_t image = blockIdx.x / tiles / tiles;
    const int tile_row = blockIdx.x / tiles % tiles, tile_column = blockIdx.x % tiles;
    if (tile_row > tile_column) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    unsigned* held = reinterpret_cast<unsigned*>(shared) + warp * 2 * kTableTile * kTableStride;
    int counts[2][4][4] = {};
    const unsigned* const rows[2][2] = {
        {held + g * kTableStride, held + (g + 8) * kTableStride},
        {held + (g + 16) * kTableStride, held + (g + 24) * kTableStride},
    };
    const unsigned* const column = held + (kTableTile + g) * kTableStride;
    const unsigned* const columns[4] = {column, column + 8 * kTableStride, column + 16 * kTableStride,
                                        column + 24 * kTableStride};
    for (int word = warp * kTableChunk; word < size; word += kTableWarps * kTableChunk) {
        const int here = min(kTableChunk, size - word);
        __syncwarp();
#pragma unroll 8
        for (int i = 0; i < 2 * kTableTile; ++i) {
            const int mask =
                min((i < kTableTile ? tile_row : tile_column) * kTableTile + i % kTableTile, masks - 1);
            if (lane < here)
                copy_4(held + i * kTableStride + lane, words + (image * masks + mask) * size + word + lane);
        }
        copy_commit();
        copy_wait<0>();
        __syncwarp();
        common_cells(counts, rows, columns, here);
    }
    __syncthreads();
    int* sums = reinterpret_cast<int*>(shared);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = 16 * r + g + i / 2 * 8, column_ = 8 * c + 2 * t + i % 2;
                sums[(warp * kTableTile + row) * kTableTile + column_] = counts[r][c][i];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTableTile * kTableTile; i += blockDim.x) {
        const int64_t row = tile_row * kTableTile + i / kTableTile;
        const int64_t column_ = tile_column * kTableTile + i % kTableTile;
        if (row >= masks || column_ >= masks) continue;
        int sum = 0;
        for (int k = 0; k < kTableWarps; ++k) sum += sums[k * kTableTile * kTableTile + i];
        table[(image * masks + row) * masks + column_] = sum;
        table[(image * masks + column_) * masks + row] = sum;
    }
}

// words int32 [batch, masks, size] -> table int32 [batch, masks, masks]
inline void launch_table(const int32_t* words, int64_t batch, int64_t masks, int64_t size, int32_t* table,
                         cudaStream_t stream) {
    const int64_t tiles = ceil_div(masks, kTableTile);
    const size_t shared = sizeof(unsigned) * kTableWarps * 2 * kTableTile * kTableStride;
    SP_FAST_LAUNCH(count_table<0>, static_cast<unsigned>(batch * tiles * tiles), 32 * kTableWarps, shared,
                   stream, reinterpret_cast<const unsigned*>(words), static_cast<int>(masks),
                   static_cast<int>(size), static_cast<int>(tiles), table);
}

}  // namespace sp_fast::cuda
