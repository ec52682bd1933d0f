// The Python module bp.cpu._native: runs every registration of the files beside this one.
#include "native.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Let parallel loops of the calling thread run on it alone. In the child of a fork OpenMP's other threads are gone, and
// the next parallel loop would wait for them forever.
void use_one_thread() {
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "C++ kernels of the CPU device of bp; bp/cpu calls them on float32 arrays.";
    for (bp::Binder bind : bp::binders()) bind(module);
    module.def("use_one_thread", &use_one_thread);
#ifdef _OPENMP
    module.attr("openmp") = true;
#else
    module.attr("openmp") = false;
#endif
}
