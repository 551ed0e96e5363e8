// A string argument of an operator. As std::string each one would be lost: the conversion in torch's stable headers
// (as of 2.13, ToImpl<std::string>) makes a copy with new and never deletes it.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <utility>

namespace difflayers {

struct Text : std::string {
  Text(std::string text) : std::string(std::move(text)) {}
};

}  // namespace difflayers

template <>
struct torch::stable::detail::ToImpl<difflayers::Text> {
  template <class... Rest>
  static difflayers::Text call(StableIValue value, Rest...) {
    const StringHandle handle = torch::stable::detail::to<StringHandle>(value);
    size_t length = 0;
    const char* letters = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &letters));
    std::string text(letters, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
