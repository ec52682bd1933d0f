// What happens to the sums of a matrix product before they are stored, in the launch that computed them.
//
//   forward:   z = alpha sum + bias,  before = z,  C = mask(f(z)) + residual + beta C
//   backward:  C = mask(alpha sum) f'(kept) + residual + beta C     where `kept` is given: the gradient in front of f
//
// C is y in the element type or wide in float; the other one is null. What is null takes no part.
#pragma once
#include "activation.cuh"
#include "dropout_mask.cuh"
#include "elements.cuh"

// What every product takes for it; the order is that of Epilogue in bp/cuda/epilogue.py and of the structure below.
#define EPILOGUE_PARAMETERS                                                                                     \
    const T *bias, const T *kept, const T *residual, const double *control, T *before, T *y, float *wide,      \
        float alpha, float beta, int activation, uint32 call_site, uint32 dropped, float scale, int64 first_element
#define EPILOGUE_ARGUMENTS                                                                                  \
    bias, kept, residual, control, before, y, wide, alpha, beta, activation, call_site, dropped, scale, \
        first_element

// The numbers are those of ACTIVATIONS in bp/cuda/epilogue.py.
enum Activation { IDENTITY = 0, RELU = 1, GELU = 2, GELU_TANH = 3, SILU = 4 };

template <typename Type>
__device__ __forceinline__ float activate(int activation, float x) {
    if (activation == RELU) return relu(x);
    if (activation == GELU) return gelu<Type>(x);
    if (activation == GELU_TANH) return gelu_tanh<Type>(x);
    if (activation == SILU) return silu<Type>(x);
    return x;
}

// dy f'(z). kept: y of RELU, z of the others.
template <typename Type>
__device__ __forceinline__ float activation_gradient(int activation, float dy, float kept) {
    if (activation == RELU) return relu_gradient(dy, kept);
    if (activation == GELU) return dy * gelu_slope<Type>(kept);
    if (activation == GELU_TANH) return dy * gelu_tanh_slope<Type>(kept);
    if (activation == SILU) return dy * silu_slope<Type>(kept);
    return dy;
}

// WIDTH elements as they lie in memory: what is loaded long before it is needed takes no register more.
template <typename Type, int WIDTH>
class Packed {
    typedef Elements<Type, WIDTH> Unpacked;
    static constexpr int WORDS = (sizeof(Unpacked) + 3) / 4;
    union Both {
        uint32 words[WORDS];
        Unpacked elements;
    };
    uint32 words[WORDS];

public:
    Packed() = default;
    __device__ __forceinline__ explicit Packed(const Unpacked& elements) {
        Both both;
        both.words[0] = 0;
        both.elements = elements;
#pragma unroll
        for (int i = 0; i < WORDS; ++i) words[i] = both.words[i];
    }
    __device__ __forceinline__ Floats<WIDTH> floats() const {
        Both both;
#pragma unroll
        for (int i = 0; i < WORDS; ++i) both.words[i] = words[i];
        Floats<WIDTH> x;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) x.at[k] = to_float(both.elements.at[k]);
        return x;
    }
};

template <typename Type>
struct Epilogue {
    typedef Type Element;
    static constexpr int AT_ONCE = 2;  // vectors that are on their way to a thread of wgmma_tile.cuh

    const Type *bias, *kept, *residual;  // bias: one for each column
    const double* control;               // of the mask; null: no mask
    Type *before, *y;
    float* wide;
    float alpha, beta;
    int activation;
    uint32 call_site, dropped;
    float scale;
    int64 first_element;

    static constexpr int V = Vector<Type>::size;

    // Whether store<V> may be called: all arrays lie at multiples of 16 bytes, and their rows too. columns: of C and of
    // the arrays beside it; stride: from a row of C to the next.
    __device__ __forceinline__ bool vectors(int64 columns, int64 stride) const {
        return aligned16(bias) && aligned16(kept) && aligned16(residual) && aligned16(before) && aligned16(y) &&
               aligned16(wide) && columns % V == 0 && stride % V == 0;
    }

    // What `store` needs of memory, as it lies there: the biases of WIDTH columns, and WIDTH elements of the first of
    // kept, residual and beta's y that there is. Who has it on its way before the sums are there waits once for many.
    template <int WIDTH>
    __device__ __forceinline__ void load_biases(int64 column, Packed<Type, WIDTH>& biases) const {
        if (bias != nullptr) biases = packed<WIDTH>(bias + column);
    }
    template <int WIDTH>
    __device__ __forceinline__ void load_beside(int64 place, int64 logical, Packed<Type, WIDTH>& beside) const {
        if (kept != nullptr)
            beside = packed<WIDTH>(kept + logical);
        else if (residual != nullptr)
            beside = packed<WIDTH>(residual + logical);
        else if (beta != 0.0f && y != nullptr)
            beside = packed<WIDTH>(y + place);
    }

    // Stores WIDTH (1 or V) elements beside each other in a row. place: of the first in y or wide; logical: in the
    // other arrays, which have no gaps between rows, and for the mask; column: for the bias. biases, beside: what has
    // been loaded for them (null: nothing).
    template <int WIDTH>
    __device__ __forceinline__ void store(int64 place, int64 logical, int64 column, const float (&sums)[WIDTH],
                                          const Packed<Type, WIDTH>* biases = nullptr,
                                          const Packed<Type, WIDTH>* beside = nullptr) const {
        Floats<WIDTH> v;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) v.at[k] = alpha * sums[k];
        if (bias != nullptr) add_to(v, biases != nullptr ? biases->floats() : load_floats<WIDTH>(bias + column));
        if (before != nullptr) store_whole(before + logical, v);
        if (kept == nullptr) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) v.at[k] = activate<Type>(activation, v.at[k]);
        }
        if (control != nullptr) drop(logical, v);
        if (kept != nullptr) {
            const Floats<WIDTH> at =
                beside != nullptr ? beside->floats() : load_floats<WIDTH>(kept + logical);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) v.at[k] = activation_gradient<Type>(activation, v.at[k], at.at[k]);
        }
        if (residual != nullptr)
            add_to(v, beside != nullptr && kept == nullptr ? beside->floats() : load_floats<WIDTH>(residual + logical));
        if (wide != nullptr)
            put(v, wide + place, [&] { return load_floats<WIDTH>(wide + place); });
        else
            put(v, y + place, [&] {
                const bool loaded = beside != nullptr && kept == nullptr && residual == nullptr;
                return loaded ? beside->floats() : load_floats<WIDTH>(y + place);
            });
    }

private:
    template <int WIDTH>
    __device__ __forceinline__ static Packed<Type, WIDTH> packed(const Type* address) {
        return Packed<Type, WIDTH>(load_elements<WIDTH>(address));
    }

    template <int WIDTH>
    __device__ __forceinline__ void drop(int64 logical, Floats<WIDTH>& v) const {
        const Mask mask{random_key(control), static_cast<uint32>(static_cast<int64>(control[FORWARD_COUNTER])),
                        call_site, dropped, scale};
        const int64 first = first_element + logical, chunk = first / CHUNK;
        const int lead = static_cast<int>(first % CHUNK);
        const uint4 bits = mask.bits(chunk);
        if (lead + WIDTH <= CHUNK) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) v.at[k] = mask.apply(bits, lead + k, v.at[k]);
        } else {
            const uint4 next = mask.bits(chunk + 1);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float first = mask.apply(bits, lead + k, v.at[k]);
                const float second = mask.apply(next, lead + k - CHUNK, v.at[k]);
                v.at[k] = lead + k < CHUNK ? first : second;
            }
        }
    }

    // there(): what lies there now.
    template <int WIDTH, typename Stored, typename There>
    __device__ __forceinline__ void put(Floats<WIDTH>& v, Stored* at, const There& there) const {
        // Vectors of 16 bytes are of both types: V elements of 16 bits are 2 of float.
        if (beta != 0.0f) {
            const Floats<WIDTH> c = there();
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) v.at[k] += beta * c.at[k];
        }
        store_whole(at, v);
    }

    // store_floats in one instruction for each 16 bytes: among these branches the compiler splits a store16 in four.
    template <int WIDTH, typename Stored>
    __device__ __forceinline__ static void store_whole(Stored* at, const Floats<WIDTH>& v) {
        if constexpr (WIDTH == 1) {
            *at = convert<Stored>(v.at[0]);
        } else {
            constexpr int PART = Vector<Stored>::size;
#pragma unroll
            for (int first = 0; first < WIDTH; first += PART) {
                Vector<Stored> part;
#pragma unroll
                for (int k = 0; k < PART; ++k) part.at[k] = convert<Stored>(v.at[first + k]);
                store16_global(at + first, part);
            }
        }
    }
};
