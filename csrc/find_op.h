// An op of any library by name, as PyTorch's dispatcher knows it.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace sp_fast {

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace sp_fast
