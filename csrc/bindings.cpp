#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "build_info.h"
#include "dispatched.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["torch"] = TORCH_VERSION;
    info["compiler"] = __VERSION__;
    info["cpp_standard"] = static_cast<int64_t>(__cplusplus);
    info["cuda"] = py::none();
#ifdef SP_FAST_WITH_CUDA
    const sp_fast::CudaBuildInfo cuda = sp_fast::cuda_build_info();
    py::dict cuda_info;
    cuda_info["compiler"] = cuda.compiler;
    cuda_info["architectures"] = cuda.architectures;
    cuda_info["compiled_runtime"] = cuda.compiled_runtime;
    cuda_info["loaded_runtime"] = cuda.loaded_runtime;
    cuda_info["aten_headers"] = cuda.aten_headers;
    info["cuda"] = cuda_info;
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    namespace ops = sp_fast::dispatched;
    using py::arg;
    const auto release = py::call_guard<py::gil_scoped_release>();
    m.doc() = "The compiled ops of sp_fast. Use sp_fast.ops, which checks arguments and is documented.";
    m.def("build_info", &build_info, "Versions of this build and, with CUDA, its architectures.");
    m.def("pool_seeds", &ops::pool_seeds, arg("features"), arg("grid"), arg("valid") = py::none(), release);
    m.def("seed_saliency", &ops::seed_saliency, arg("features"), arg("seeds"), arg("valid") = py::none(),
          arg("cosine") = false, arg("threshold") = 0.5, release);
    m.def("connected_parts", &ops::connected_parts, arg("words"), arg("height"), arg("width"),
          arg("max_parts") = 8, arg("min_area") = 1, arg("connectivity") = 8, release);
    m.def("deformable_attention", &ops::deformable_attention, arg("value"), arg("sizes"), arg("locations"),
          arg("weights"), release);
    m.def("mask_nms", &ops::mask_nms, arg("words"), arg("score"), arg("iou_threshold") = 0.5,
          arg("min_area") = 2, arg("max_masks") = 20, release);
    m.def("matrix_nms", &ops::matrix_nms, arg("words"), arg("score"), arg("gaussian") = true,
          arg("sigma") = 2.0, release);
    m.def("roi_average_pool", &ops::roi_average_pool, arg("features"), arg("boxes"),
          arg("count") = py::none(), release);
    m.def("match_prompts", &ops::match_prompts, arg("kernels"), arg("prompts"), arg("count") = py::none(),
          release);
    m.def("kernel_supervision_loss", &ops::kernel_supervision_loss, arg("kernels"), arg("targets"),
          arg("index"), arg("mean") = true, release);
}
