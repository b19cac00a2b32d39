// The PyTorch side of the CUDA ops: device, stream, registration.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "device.h"

#ifdef SP_FAST_CUDA_ON_CPU
#define SP_FAST_CUDA_OPS(m) TORCH_LIBRARY_IMPL(sp_fast_on_cpu, CPU, m)
#else
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#define SP_FAST_CUDA_OPS(m) TORCH_LIBRARY_IMPL(sp_fast, CUDA, m)
#endif

namespace sp_fast::cuda {

// Makes a tensor's device current during its lifetime; kernels are launched on the current stream there.
class OnDevice {
  public:
#ifdef SP_FAST_CUDA_ON_CPU
    explicit OnDevice(const at::Tensor&) : stream(nullptr) {}
    const cudaStream_t stream;
#else
    explicit OnDevice(const at::Tensor& tensor)
        : guard_(tensor.device()), stream(at::cuda::getCurrentCUDAStream()) {
        const cudaDeviceProp& gpu = *at::cuda::getCurrentDeviceProperties();
        TORCH_CHECK(gpu.major >= 8, "sp_fast's CUDA kernels need a GPU of compute capability 8.0 or above; ",
                    gpu.name, " has ", gpu.major, ".", gpu.minor,
                    ". With SP_FAST_DISABLE_EXTENSION=1 in the environment the ops run in plain PyTorch.");
    }

  private:
    const c10::cuda::CUDAGuard guard_;

  public:
    const cudaStream_t stream;
#endif
};

// Checks that a tensor is on the device of the op's first tensor.
inline void check_device(const char* name, const at::Tensor& value, const at::Tensor& first) {
    TORCH_CHECK_VALUE(value.device() == first.device(), name, ": expected device ", first.device(), ", got ",
                      value.device());
}

inline Element element_of(const char* name, const at::Tensor& value) {
    switch (value.scalar_type()) {
        case at::kFloat:
            return Element::kFloat;
        case at::kHalf:
            return Element::kHalf;
        case at::kBFloat16:
            return Element::kBFloat16;
        case at::kDouble:
            return Element::kDouble;
        default:
            TORCH_CHECK_TYPE(false, name, ": expected dtype float32, float16, bfloat16 or float64, got ",
                             value.scalar_type());
    }
}

}  // namespace sp_fast::cuda
