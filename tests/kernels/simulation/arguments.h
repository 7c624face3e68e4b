// A kernel with its arguments, which are given by their addresses.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

namespace arguments {

template <class T>
T read(const void* from) {
    T value;
    memcpy(&value, from, sizeof(T));
    return value;
}

template <class... Parameters, size_t... PLACES>
std::function<void()> bound(void (*kernel)(Parameters...), void** given, std::index_sequence<PLACES...>) {
    const auto values =
        std::make_shared<std::tuple<std::decay_t<Parameters>...>>(read<std::decay_t<Parameters>>(given[PLACES])...);
    return [=] { std::apply(kernel, *values); };
}

template <class... Parameters>
std::function<void()> bound(void (*kernel)(Parameters...), void** given) {
    return bound(kernel, given, std::index_sequence_for<Parameters...>());
}

}  // namespace arguments
