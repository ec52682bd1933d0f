// Sums along a row in vector code: so many partial sums side by side, in an order that depends on the length alone.
#pragma once

#include <cstdint>

#include "native.hpp"

namespace bp {

constexpr int SUM_LANES = 32;
constexpr std::int64_t SUM_RUN = 128 * SUM_LANES;

// The sum of so many lanes, the upper half onto the lower until one is left; overwrites the lanes. One step calls the
// next: of a loop over the steps GCC makes scalar code.
template <int LANES, class Number>
BP_INLINE Number fold_lanes(Number* lanes) {
    if constexpr (LANES == 1) return lanes[0];
    else {
        for (int lane = 0; lane < LANES / 2; ++lane) lanes[lane] += lanes[lane + LANES / 2];
        return fold_lanes<LANES / 2>(lanes);
    }
}

struct Sums {
    double terms = 0, squares = 0;
};

// The sum of term(0..n-1) and, where wanted, that of their squares. After SUM_RUN terms they go into doubles: a lane in
// float32 that grows on loses more of each term the longer the row is.
template <bool SQUARES, class Term>
BP_INLINE Sums lane_sums(std::int64_t n, Term term) {
    Sums total;
    for (std::int64_t j = 0; j < n;) {
        const std::int64_t stop = n - j < SUM_RUN ? n : j + SUM_RUN;
        float terms[SUM_LANES] = {}, squares[SUM_LANES] = {};
        const auto add = [&](float t, int lane) {
            terms[lane] += t;
            if (SQUARES) squares[lane] += t * t;
        };
        for (; j + SUM_LANES <= stop; j += SUM_LANES) {
#pragma omp simd  // of this loop: GCC would take the one around it, and shuffle
            for (int lane = 0; lane < SUM_LANES; ++lane) add(term(j + lane), lane);
        }
        for (int lane = 0; j < stop; ++j, ++lane) add(term(j), lane);
        total.terms += fold_lanes<SUM_LANES>(terms);
        if (SQUARES) total.squares += fold_lanes<SUM_LANES>(squares);
    }
    return total;
}

template <class Term>
BP_INLINE double lane_sum(std::int64_t n, Term term) {
    return lane_sums<false>(n, term).terms;
}

}  // namespace bp
