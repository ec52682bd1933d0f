// Dropout in float32: Philox4x32-10, eight elements a call; bp/ops/dropout.py states which bits an element takes.
#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include <pybind11/stl.h>

#include "native.hpp"

namespace {

using bp::Array;
using std::int64_t;
using std::uint32_t;
using std::uint64_t;

using Pair = std::pair<uint32_t, uint32_t>;

// Chunks drawn together: each step of the ten rounds is one loop over them, which the compiler turns into vector code.
constexpr int64_t CHUNKS = 64;

// words[k][i]: word k of Philox for the counter (first + i low, first + i high, stream), i < CHUNKS.
// Source: Salmon, Moraes, Dror, Shaw, Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
BP_CLONES void philox(uint64_t first, Pair stream, Pair key, uint32_t (*__restrict words)[CHUNKS]) {
    for (int64_t i = 0; i < CHUNKS; i++) {
        uint32_t c0 = static_cast<uint32_t>(first + i), c1 = static_cast<uint32_t>((first + i) >> 32);
        uint32_t c2 = stream.first, c3 = stream.second, k0 = key.first, k1 = key.second;
        for (int round = 0; round < 10; round++) {
            const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
            c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
            c1 = static_cast<uint32_t>(p1);
            c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
            c3 = static_cast<uint32_t>(p0);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        words[0][i] = c0;
        words[1][i] = c1;
        words[2][i] = c2;
        words[3][i] = c3;
    }
}

// y for `count` elements from `skip` on of the chunks that were drawn.
BP_CLONES void apply(const uint32_t (*__restrict words)[CHUNKS], int64_t skip, const float* __restrict x,
                     float* __restrict y, int64_t count, uint32_t dropped, float scale) {
    std::uint16_t bits[8 * CHUNKS];
    for (int64_t i = 0; i < CHUNKS; i++) {
        for (int k = 0; k < 4; k++) {
            bits[8 * i + 2 * k] = static_cast<std::uint16_t>(words[k][i]);
            bits[8 * i + 2 * k + 1] = static_cast<std::uint16_t>(words[k][i] >> 16);
        }
    }
    for (int64_t i = 0; i < count; i++) y[i] = bits[skip + i] >= dropped ? x[i] * scale : 0.0f;
}

void dropout(const Array<float>& x, Pair key, Pair stream, uint64_t first_element, uint32_t dropped, float scale,
             Array<float> y) {
    if (x.size() != y.size()) throw std::invalid_argument("dropout: arrays of different sizes");
    const float* in = x.data();
    float* out = y.mutable_data();
    const int64_t size = x.size();
    const uint64_t first_chunk = first_element / 8;
    const int64_t lead = static_cast<int64_t>(first_element % 8);  // elements of the first chunk before x begins
    const int64_t blocks = (lead + size + 8 * CHUNKS - 1) / (8 * CHUNKS);
    pybind11::gil_scoped_release release;
#pragma omp parallel for schedule(static) if (size >= 1 << 15)
    for (int64_t block = 0; block < blocks; block++) {
        uint32_t words[4][CHUNKS];
        philox(first_chunk + static_cast<uint64_t>(block * CHUNKS), stream, key, words);
        const int64_t begin = std::max<int64_t>(block * 8 * CHUNKS - lead, 0);
        const int64_t end = std::min<int64_t>((block + 1) * 8 * CHUNKS - lead, size);
        apply(words, begin + lead - block * 8 * CHUNKS, in + begin, out + begin, end - begin, dropped, scale);
    }
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, Pair key) {
    uint32_t words[4][CHUNKS];
    philox(counter[0] | uint64_t{counter[1]} << 32, {counter[2], counter[3]}, key, words);
    return {words[0][0], words[1][0], words[2][0], words[3][0]};
}

}  // namespace

BP_NATIVE(dropout) {
    using pybind11::arg;
    module.def("dropout", dropout, arg("x").noconvert(), arg("key"), arg("stream"), arg("first_element"),
               arg("dropped"), arg("scale"), arg("y").noconvert());
    module.def("philox4x32", philox4x32, arg("counter"), arg("key"));
}
