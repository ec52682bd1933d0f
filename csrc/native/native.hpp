// What every native kernel file shares: registration with the Python module, array arguments, run-time dispatch.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace bp {

namespace py = pybind11;

// A file adds its functions with BP_NATIVE(family) { module.def(...); } and edits no list.
using Binder = void (*)(py::module_&);
inline std::vector<Binder>& binders() {
    static std::vector<Binder> all;
    return all;
}
struct Registration {
    explicit Registration(Binder binder) { binders().push_back(binder); }
};
#define BP_NATIVE(family)                                                   \
    static void bind_##family(pybind11::module_& module);                   \
    static const bp::Registration register_##family(bind_##family);         \
    static void bind_##family(pybind11::module_& module)

// A float32 (or other) array that is taken as it is: C-contiguous, right type, never converted or copied.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

// A loop under BP_CLONES is compiled for several instruction sets, and the best one is taken when the module loads.
// GCC on x86-64 Linux has the mechanism; elsewhere the plain loop runs.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define BP_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BP_CLONES
#endif

// A function called from a loop under BP_CLONES: inlined into each copy, so that it is compiled for its instruction set.
#if defined(__GNUC__)
#define BP_INLINE inline __attribute__((always_inline))
#else
#define BP_INLINE inline
#endif

// Calls run(first, count) for pieces of a size that fits the second-level cache. Below PARALLEL elements waking a
// second thread costs more than it saves.
constexpr std::int64_t PIECE = 1 << 14, PARALLEL = 1 << 17;

template <class Run>
void in_pieces(std::int64_t size, Run run) {
    if (size < PARALLEL) return run(0, size);
    const std::int64_t pieces = (size + PIECE - 1) / PIECE;
#pragma omp parallel for schedule(static)
    for (std::int64_t piece = 0; piece < pieces; piece++) run(piece * PIECE, std::min(PIECE, size - piece * PIECE));
}

}  // namespace bp
