// The Python module bp.cpu._native: runs every registration of the files beside this one.
#include "native.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

PYBIND11_MODULE(_native, module) {
    module.doc() = "C++ kernels of the CPU device of bp; bp/cpu calls them on float32 arrays.";
    for (bp::Binder bind : bp::binders()) bind(module);
#ifdef _OPENMP
    module.attr("openmp") = true;
#else
    module.attr("openmp") = false;
#endif
}
