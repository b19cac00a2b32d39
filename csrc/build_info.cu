#include <cuda_runtime_api.h>

#if __has_include(<ATen/cuda/CUDAContext.h>)
#include <ATen/cuda/CUDAContext.h>
#define SP_FAST_HAS_ATEN_CUDA true
#else
#define SP_FAST_HAS_ATEN_CUDA false
#endif

#include "build_info.h"

namespace sp_fast {

CudaBuildInfo cuda_build_info() {
    CudaBuildInfo info;
    info.compiler = std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + "." +
                    std::to_string(__CUDACC_VER_BUILD__);
    for (const int architecture : {__CUDA_ARCH_LIST__}) info.architectures.push_back(architecture / 10);
    info.compiled_runtime = CUDART_VERSION;
    if (cudaRuntimeGetVersion(&info.loaded_runtime) != cudaSuccess) info.loaded_runtime = 0;
    info.aten_headers = SP_FAST_HAS_ATEN_CUDA;
    return info;
}

}  // namespace sp_fast
