// What was built, for `sp_fast._C.build_info()`.
#pragma once

#include <string>
#include <vector>

namespace sp_fast {

struct CudaBuildInfo {
    std::string compiler;            // of nvcc
    std::vector<int> architectures;  // 10 * compute capability
    int compiled_runtime = 0;        // CUDART_VERSION of the headers
    int loaded_runtime = 0;          // of the library in this process, 0 if it does not say
    bool aten_headers = false;       // ATen's CUDA headers were there
};

// Defined in build_info.cu alone.
CudaBuildInfo cuda_build_info();

}  // namespace sp_fast
