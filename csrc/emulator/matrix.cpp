// ldmatrix and mma.sync, in the fragment layouts of the PTX ISA ("Warp Level Matrix Instructions").
#include <cstring>

#include "conversions.hpp"
#include "detector.hpp"
#include "engine.hpp"

namespace emulator {
namespace {

struct LoadOperand {
    const char* row;
    unsigned* registers;
    unsigned matrices;
    bool transposed;
};

// Lane 8 m + r holds the address of row r of matrix m: 8 elements of 16 bits. Lane l receives, of each matrix, elements
// 2 (l % 4) and 2 (l % 4) + 1 of row l / 4; transposed, of column l / 4.
void complete_load(unsigned, void* const* operands) {
    const auto& shape = *static_cast<LoadOperand*>(operands[0]);
    for (unsigned matrix = 0; matrix < shape.matrices; ++matrix) {
        unsigned short elements[8][8];
        for (unsigned row = 0; row < 8; ++row)
            std::memcpy(elements[row], static_cast<LoadOperand*>(operands[matrix * 8 + row])->row, 16);
        for (unsigned lane = 0; lane < warp_lanes; ++lane) {
            const unsigned major = lane / 4, minor = lane % 4 * 2;
            const unsigned low = shape.transposed ? elements[minor][major] : elements[major][minor];
            const unsigned high = shape.transposed ? elements[minor + 1][major] : elements[major][minor + 1];
            static_cast<LoadOperand*>(operands[lane])->registers[matrix] = low | high << 16;
        }
    }
}

struct MultiplyOperand {
    float* d;
    const unsigned *a, *b;
};

float low_half(Element element, unsigned word) {
    const auto bits = static_cast<unsigned short>(word);
    return element == Element::float16 ? float_of_half(bits) : float_of_bfloat(bits);
}

// tf32 has 10 bits of mantissa: the hardware ignores the rest.
float tf32(unsigned word) { return float_of(word & 0xffffe000u); }

// d (16 x 8): register r of lane l is row l / 4 + 8 (r / 2), column 2 (l % 4) + r % 2.
template <unsigned depth>
void accumulate(void* const* operands, const float (&a)[16][16], const float (&b)[16][8]) {
    for (unsigned lane = 0; lane < warp_lanes; ++lane) {
        float* d = static_cast<MultiplyOperand*>(operands[lane])->d;
        for (unsigned r = 0; r < 4; ++r) {
            const unsigned row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
            float total = 0.0f;
            for (unsigned k = 0; k < depth; ++k) total += a[row][k] * b[k][column];
            d[r] += total;
        }
    }
}

// m16n8k16. a: register r of lane l holds row l / 4 + 8 (r % 2), columns 2 (l % 4) + 8 (r / 2) and the next.
// b: register r of lane l holds rows 2 (l % 4) + 8 r and the next, column l / 4. The lower half is the first.
template <Element element>
void complete_16bit(unsigned, void* const* operands) {
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < warp_lanes; ++lane) {
        const auto& operand = *static_cast<MultiplyOperand*>(operands[lane]);
        for (unsigned r = 0; r < 4; ++r)
            for (unsigned half = 0; half < 2; ++half)
                a[lane / 4 + 8 * (r % 2)][2 * (lane % 4) + 8 * (r / 2) + half] =
                    low_half(element, operand.a[r] >> 16 * half);
        for (unsigned r = 0; r < 2; ++r)
            for (unsigned half = 0; half < 2; ++half)
                b[2 * (lane % 4) + 8 * r + half][lane / 4] = low_half(element, operand.b[r] >> 16 * half);
    }
    accumulate<16>(operands, a, b);
}

// m16n8k8 of tf32. a: register r of lane l is row l / 4 + 8 (r % 2), column l % 4 + 4 (r / 2).
// b: register r of lane l is row l % 4 + 4 r, column l / 4.
void complete_tf32(unsigned, void* const* operands) {
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < warp_lanes; ++lane) {
        const auto& operand = *static_cast<MultiplyOperand*>(operands[lane]);
        for (unsigned r = 0; r < 4; ++r) a[lane / 4 + 8 * (r % 2)][lane % 4 + 4 * (r / 2)] = tf32(operand.a[r]);
        for (unsigned r = 0; r < 2; ++r) b[lane % 4 + 4 * r][lane / 4] = tf32(operand.b[r]);
    }
    accumulate<8>(operands, a, b);
}

}  // namespace

void load_matrix(const void* row, unsigned* registers, unsigned matrices, bool transposed, Site site) {
    if (lane() < 8 * matrices) {
        if (reinterpret_cast<std::uintptr_t>(row) % 16)
            fault(site, "ldmatrix from row %p, which is no multiple of 16", row);
        if (!is_shared(row, 16)) fault(site, "ldmatrix from row %p, which is not in the block's shared memory", row);
        if (launch.request.kernel->detector)
            detector_access(Access::read, row, 16, __builtin_return_address(0), true);
    }
    LoadOperand operand{static_cast<const char*>(row), registers, matrices, transposed};
    static const char* const names[2][5] = {{"", "ldmatrix.x1", "ldmatrix.x2", "", "ldmatrix.x4"},
                                            {"", "ldmatrix.x1.trans", "ldmatrix.x2.trans", "", "ldmatrix.x4.trans"}};
    warp_collective(~0u, names[transposed][matrices], &operand, complete_load, false, site);
}

void multiply_accumulate(Element element, float* d, const unsigned* a, const unsigned* b, Site site) {
    MultiplyOperand operand{d, a, b};
    switch (element) {
        case Element::float16:
            warp_collective(~0u, "mma.sync.f16", &operand, complete_16bit<Element::float16>, false, site);
            break;
        case Element::bfloat16:
            warp_collective(~0u, "mma.sync.bf16", &operand, complete_16bit<Element::bfloat16>, false, site);
            break;
        case Element::tf32:
            warp_collective(~0u, "mma.sync.tf32", &operand, complete_tf32, false, site);
            break;
    }
}

}  // namespace emulator
