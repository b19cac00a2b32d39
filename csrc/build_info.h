// Versions of the build, for `sp_fast._C.build_info()`.
#pragma once

#include <string>
#include <vector>

namespace sp_fast {

struct CudaBuildInfo {
    std::string compiler;            // version of nvcc
    std::vector<int> architectures;  // 10 * compute capability
    int compiled_runtime = 0;        // CUDART_VERSION of the headers
    int loaded_runtime = 0;          // version of the loaded library, 0 if unknown
    bool aten_headers = false;       // whether ATen's CUDA headers were found
};

// Defined in build_info.cu.
CudaBuildInfo cuda_build_info();

}  // namespace sp_fast
