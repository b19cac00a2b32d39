// Runs CUDA kernels on the CPU, to test them on machines without a GPU. Included before a .cu file that is
// compiled as C++. Every thread of a block is a fibre that runs until it waits at a barrier or in a warp's
// exchange; fibres take turns in a new random order each time, so that a missing barrier shows. Shared memory
// starts poisoned. A deadlock within a block aborts the process.
//
// Blocks run one after the other, in a random order; there are no clusters and no tensor cores.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#define SP_FAST_CUDA_ON_CPU
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace on_cpu {

constexpr int kWarp = 32;

// An asynchronous 16-byte copy to shared memory, which completes when its thread waits for its group.
struct Copy {
    void* to;
    const void* from;
    int bytes, size;
    unsigned group;
};

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 thread;
    unsigned index = 0;
    bool done = false;
    std::vector<Copy> copies;
    unsigned groups = 0;
};

// Exchanges of values among the lanes of a mask. Two buffers alternate, since slow lanes may still read the
// values of the previous exchange.
struct Exchange {
    uint64_t values[2][kWarp] = {};
    unsigned arrived = 0;
    uint64_t generation = 0;
};

struct Block {
    std::vector<Fibre> fibres;
    std::vector<std::map<unsigned, Exchange>> exchanges;  // of each warp, by mask
    std::vector<unsigned char> shared;
    ucontext_t scheduler;
    Fibre* running = nullptr;
    unsigned alive = 0, waiting = 0;
    uint64_t barrier = 0, votes[2] = {}, events = 0;
};

inline Block block;
inline std::mt19937 random_order{0};

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "CUDA on the CPU: %s\n", what);
    std::abort();
}

// Copies `bytes` and zeros up to `size`, but not before the thread waits for it.
inline void copy_later(void* to, const void* from, int bytes, int size = 16) {
    std::memset(to, 0xff, size);
    block.running->copies.push_back({to, from, bytes, size, block.running->groups});
}

inline void commit_copies() { ++block.running->groups; }

inline void wait_for_copies(unsigned pending) {
    Fibre& self = *block.running;
    std::erase_if(self.copies, [&](const Copy& copy) {
        if (copy.group + pending >= self.groups) return false;
        std::memset(copy.to, 0, copy.size);
        std::memcpy(copy.to, copy.from, copy.bytes);
        return true;
    });
}

inline void let_others_run() { swapcontext(&block.running->context, &block.scheduler); }

// Waits for all threads of the block that have not returned; returns the sum of their votes.
inline uint64_t wait_for_block(uint64_t vote) {
    const uint64_t mine = block.barrier;
    if (block.waiting == 0) block.votes[mine % 2] = 0;
    block.votes[mine % 2] += vote;
    if (++block.waiting == block.alive) {
        block.waiting = 0;
        ++block.barrier;
    }
    while (block.barrier == mine) let_others_run();
    ++block.events;
    return block.votes[mine % 2];
}

inline unsigned lane() { return block.running->index % kWarp; }

inline unsigned lanes_of_warp() {
    const unsigned first = block.running->index / kWarp * kWarp;
    const size_t number = std::min<size_t>(kWarp, block.fibres.size() - first);
    return number == kWarp ? ~0u : (1u << number) - 1;
}

// Returns the values of all lanes in the mask, once all lanes have arrived.
inline const uint64_t* exchange(unsigned mask, uint64_t value) {
    mask &= lanes_of_warp();
    if (!(mask >> lane() & 1)) fail("a lane takes part in an exchange whose mask excludes it");
    Exchange& at = block.exchanges[block.running->index / kWarp][mask];
    const uint64_t mine = at.generation;
    at.values[mine % 2][lane()] = value;
    at.arrived |= 1u << lane();
    if (at.arrived == mask) {
        at.arrived = 0;
        ++at.generation;
    }
    while (at.generation == mine) let_others_run();
    ++block.events;
    return at.values[mine % 2];
}

template <typename T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, bool inside) {
    const uint64_t* values = exchange(mask, to_bits(value));
    return inside ? from_bits<T>(values[source]) : value;
}

template <typename T, typename F>
T reduce(unsigned mask, T value, F combine) {
    const uint64_t* values = exchange(mask, to_bits(value));
    bool first = true;
    T result{};
    for (unsigned k = 0; k < kWarp; ++k) {
        if (!((mask & lanes_of_warp()) >> k & 1)) continue;
        result = first ? from_bits<T>(values[k]) : combine(result, from_bits<T>(values[k]));
        first = false;
    }
    return result;
}

}  // namespace on_cpu

inline uint3 blockIdx_;
inline dim3 blockDim, gridDim;
#define blockIdx blockIdx_
#define threadIdx (on_cpu::block.running->thread)
constexpr int warpSize = on_cpu::kWarp;

namespace on_cpu {

inline std::function<void()> kernel;

inline void run_fibre() {
    kernel();
    Fibre& self = *block.running;
    self.done = true;
    ++block.events;
    if (--block.alive > 0 && block.waiting == block.alive) {
        block.waiting = 0;
        ++block.barrier;
    }
    let_others_run();
}

inline void run_block(dim3 threads, size_t shared) {
    constexpr size_t kStack = 128 << 10;
    const unsigned number = threads.x * threads.y * threads.z;
    if (number == 0 || number > 1024) fail("a block of no or more than 1024 threads");
    if (shared > 227 << 10) fail("more shared memory than a multiprocessor has");
    block.fibres.resize(number);
    block.exchanges.assign((number + kWarp - 1) / kWarp, {});
    block.shared.assign(shared + 16, 0xff);
    block.alive = number;
    block.waiting = 0;
    for (unsigned i = 0; i < number; ++i) {
        Fibre& fibre = block.fibres[i];
        if (!fibre.stack) fibre.stack = std::make_unique<char[]>(kStack);
        fibre.index = i;
        fibre.thread = dim3(i % threads.x, i / threads.x % threads.y, i / (threads.x * threads.y));
        fibre.done = false;
        fibre.copies.clear();
        fibre.groups = 0;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = kStack;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, run_fibre, 0);
    }
    std::vector<unsigned> order(number);
    std::iota(order.begin(), order.end(), 0);
    while (block.alive > 0) {
        const uint64_t before = block.events;
        std::shuffle(order.begin(), order.end(), random_order);
        for (const unsigned i : order) {
            if (block.fibres[i].done) continue;
            block.running = &block.fibres[i];
            swapcontext(&block.scheduler, &block.running->context);
        }
        if (block.events == before) fail("deadlock: the threads of a block wait for each other");
    }
}

template <typename F>
void launch(dim3 grid, dim3 threads, size_t shared, F body) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("a grid of no blocks");
    if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) fail("a grid of too many blocks");
    kernel = body;
    gridDim = grid;
    blockDim = threads;
    std::vector<uint64_t> order(uint64_t(grid.x) * grid.y * grid.z);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_order);
    for (const uint64_t i : order) {
        blockIdx_ = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
        run_block(threads, shared);
    }
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait_for_block(0); }
inline int __syncthreads_count(int vote) { return static_cast<int>(on_cpu::wait_for_block(vote != 0)); }
inline int __syncthreads_or(int vote) { return on_cpu::wait_for_block(vote != 0) != 0; }
inline int __syncthreads_and(int vote) { return on_cpu::wait_for_block(vote == 0) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { on_cpu::exchange(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { on_cpu::fail("trap"); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned first = on_cpu::lane() / width * width;
    return on_cpu::shuffle(mask, value, first + static_cast<unsigned>(source) % width, true);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
    const unsigned source = on_cpu::lane() ^ by;
    return on_cpu::shuffle(mask, value, source, source < on_cpu::lane() / width * width + width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned source = on_cpu::lane() + by;
    return on_cpu::shuffle(mask, value, source, source < on_cpu::lane() / width * width + width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const bool inside = on_cpu::lane() % width >= by;
    return on_cpu::shuffle(mask, value, inside ? on_cpu::lane() - by : 0, inside);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    return on_cpu::reduce<unsigned>(mask, vote != 0 ? 1u << on_cpu::lane() : 0u, std::bit_or<unsigned>());
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }
template <typename T>
T __reduce_add_sync(unsigned mask, T value) {
    return on_cpu::reduce(mask, value, std::plus<T>());
}
template <typename T>
T __reduce_or_sync(unsigned mask, T value) {
    return on_cpu::reduce(mask, value, std::bit_or<T>());
}
template <typename T>
T __reduce_and_sync(unsigned mask, T value) {
    return on_cpu::reduce(mask, value, std::bit_and<T>());
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value) {
    return on_cpu::reduce(mask, value, [](T a, T b) { return b < a ? b : a; });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value) {
    return on_cpu::reduce(mask, value, [](T a, T b) { return a < b ? b : a; });
}

template <typename T, typename F>
T change_(T* at, F to) {
    const T before = *at;
    *at = to(before);
    return before;
}
template <typename T>
T atomicAdd(T* at, T value) {
    return change_(at, [=](T x) { return x + value; });
}
template <typename T>
T atomicOr(T* at, T value) {
    return change_(at, [=](T x) { return x | value; });
}
template <typename T>
T atomicAnd(T* at, T value) {
    return change_(at, [=](T x) { return x & value; });
}
template <typename T>
T atomicMin(T* at, T value) {
    return change_(at, [=](T x) { return value < x ? value : x; });
}
template <typename T>
T atomicMax(T* at, T value) {
    return change_(at, [=](T x) { return x < value ? value : x; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
    return reversed;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = x | uint64_t(y) << 32;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t{a} * b >> 32; }
inline unsigned __float_as_uint(float x) { return on_cpu::from_bits<unsigned>(on_cpu::to_bits(x)); }
inline int __float_as_int(float x) { return on_cpu::from_bits<int>(on_cpu::to_bits(x)); }
inline float __uint_as_float(unsigned x) { return on_cpu::from_bits<float>(on_cpu::to_bits(x)); }
inline float __int_as_float(int x) { return on_cpu::from_bits<float>(on_cpu::to_bits(x)); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
template <typename T>
T __ldg(const T* at) {
    return *at;
}
using std::isfinite;
using std::isinf;
using std::isnan;
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}
