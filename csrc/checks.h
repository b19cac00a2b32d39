// Argument checks shared by all ops. The checks in Python have better messages; these keep the C++ functions
// safe however they are called.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <optional>

namespace sp_fast {

inline void check_cpu(const char* name, const at::Tensor& value) {
    TORCH_CHECK_VALUE(value.device().is_cpu(), name, ": expected device cpu, got ", value.device());
}

// A size of -1 matches any size.
inline void check_shape(const char* name, const at::Tensor& value, std::initializer_list<int64_t> shape) {
    const at::IntArrayRef expected(shape);
    bool same = value.dim() == static_cast<int64_t>(expected.size());
    for (size_t i = 0; same && i < expected.size(); ++i) {
        same = expected[i] == -1 || expected[i] == value.size(static_cast<int64_t>(i));
    }
    TORCH_CHECK_VALUE(same, name, ": expected shape ", expected, " (-1: any), got ", value.sizes());
}

// The last two sizes of maps.
inline void check_map(const char* name, const at::Tensor& value) {
    TORCH_CHECK_VALUE(value.size(-2) >= 1 && value.size(-1) >= 1, name,
                      ": expected height and width of at least 1, got ", value.sizes());
}

inline void check_real(const char* name, const at::Tensor& value) {
    const auto type = value.scalar_type();
    TORCH_CHECK_TYPE(type == at::kFloat || type == at::kHalf || type == at::kBFloat16 || type == at::kDouble,
                     name, ": expected dtype float32, float16, bfloat16 or float64, got ", type);
}

inline void check_index(const char* name, const at::Tensor& value) {
    const auto type = value.scalar_type();
    TORCH_CHECK_TYPE(type == at::kLong || type == at::kInt, name, ": expected dtype int64 or int32, got ",
                     type);
}

inline void check_same_dtype(const char* name, const at::Tensor& value, const at::Tensor& other) {
    TORCH_CHECK_TYPE(value.scalar_type() == other.scalar_type(), name, ": expected dtype ",
                     other.scalar_type(), ", got ", value.scalar_type());
}

// Checks that all values are in [low, high]. `value` is int64 and contiguous.
inline void check_values(const char* name, const at::Tensor& value, int64_t low, int64_t high) {
    const int64_t* data = value.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < value.numel(); ++i) {
        TORCH_CHECK_VALUE(data[i] >= low && data[i] <= high, name, ": expected values in [", low, ", ", high,
                          "], got ", data[i]);
    }
}

// The count [B] as int64, checked to be in [0, limit]; `limit` for every image if there is no count.
inline at::Tensor checked_count(const std::optional<at::Tensor>& count, const at::Tensor& like, int64_t batch,
                                int64_t limit) {
    if (!count.has_value()) {
        return at::full({batch}, limit, like.options().dtype(at::kLong));
    }
    check_cpu("count", *count);
    check_index("count", *count);
    check_shape("count", *count, {batch});
    at::Tensor rows = count->to(at::kLong).contiguous();
    check_values("count", rows, 0, limit);
    return rows;
}

// fp64 accumulates in fp64, all other dtypes in fp32.
inline at::ScalarType accumulate_type(const at::Tensor& value) {
    return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace sp_fast
