// Code shared by the CUDA kernels. This header and the .cu files do not include PyTorch, so they compile in
// seconds: for a GPU or, to test without one, for the CPU (tests/cuda/on_cpu.h).
#pragma once

#ifndef SP_FAST_CUDA_ON_CPU
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef SP_FAST_CUDA_ON_CPU
#define SP_FAST_LAUNCH(kernel, grid, threads, shared, stream, ...) \
    ((void)(stream), on_cpu::launch(grid, threads, shared, [=] { kernel(__VA_ARGS__); }))
#define SP_FAST_DYNAMIC_SHARED(name)                              \
    unsigned char* const name = reinterpret_cast<unsigned char*>( \
        (reinterpret_cast<uintptr_t>(on_cpu::block.shared.data()) + 15) / 16 * 16)
#else
// Launches a kernel; throws if the launch fails. Put a `kernel` with template arguments in parentheses.
#define SP_FAST_LAUNCH(kernel, grid, threads, shared, stream, ...)                     \
    do {                                                                               \
        if ((shared) > 48 << 10) sp_fast::cuda::allow_shared(kernel, shared, #kernel); \
        kernel<<<grid, threads, shared, stream>>>(__VA_ARGS__);                        \
        sp_fast::cuda::check_cuda(cudaGetLastError(), #kernel);                        \
    } while (false)
#define SP_FAST_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace sp_fast::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

enum class Element { kFloat, kHalf, kBFloat16, kDouble };

inline void check_cuda(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

#ifndef SP_FAST_CUDA_ON_CPU
template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes, const char* what) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        what);
}
#endif

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// N elements read or written by one instruction; the address is a multiple of its size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, typename T>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& value) {
    *reinterpret_cast<Pack<T, N>*>(to) = value;
}

#if defined(__CUDACC__) || defined(SP_FAST_CUDA_ON_CPU)  // not for the host compiler, on the PyTorch side

// Copies 16 bytes from global to shared memory without registers: the first `bytes` are read, the rest is
// zero. Both addresses are multiples of 16. The copy is complete after copy_wait and a barrier.
__device__ __forceinline__ void copy_16(void* shared, const void* global, int bytes = 16) {
#ifdef SP_FAST_CUDA_ON_CPU
    on_cpu::copy_later(shared, global, bytes);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(shared))),
                 "l"(global), "r"(bytes)
                 : "memory");
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() {
#ifdef SP_FAST_CUDA_ON_CPU
    on_cpu::commit_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `Pending` groups of this thread are incomplete.
template <int Pending>
__device__ __forceinline__ void copy_wait() {
#ifdef SP_FAST_CUDA_ON_CPU
    on_cpu::wait_for_copies(Pending);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

#endif

}  // namespace sp_fast::cuda
