// A block that walks down a strip of columns of a matrix, each thread keeping to the same columns.
#pragma once
#include "elements.cuh"
#include "moments.cuh"

// store16 for global memory, in one instruction for certain: with addresses that are computed as here, NVRTC 12.9 makes
// four of it.
template <typename Type>
__device__ __forceinline__ void store_whole(Type* address, const Vector<Type>& value) {
#ifdef BP_EMULATOR
    store16(address, value);
#else
    union {
        uint4 words;
        Vector<Type> elements;
    } x;
    x.elements = value;
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(x.words.x), "r"(x.words.y),
                 "r"(x.words.z), "r"(x.words.w)
                 : "memory");
#endif
}

// `across` neighbouring threads hold WIDTH neighbouring columns each, so that rows are read in whole lines; the block
// takes THREADS / across rows at a time, its phases. A thread beyond the last phase, or the last column, is not
// active.
//
// WIDTH is 16 bytes where that divides the rows, else 1. It is told by the shape alone, so sums are split by shape
// alone; where the arrays begin decides only how the elements are read.
template <typename Type, int WIDTH, int THREADS>
struct Strip {
    int across, phases, phase;
    int64 column;  // the first of this thread
    bool active;

    __device__ __forceinline__ Strip(int64 columns, int64 strip, int threads_across)
        : across(threads_across),
          phases(THREADS / threads_across),
          phase(threadIdx.x / threads_across),
          column((strip * threads_across + threadIdx.x % threads_across) * WIDTH),
          active(phase < phases && column < columns) {}

    __device__ __forceinline__ Elements<Type, WIDTH> load(const Type* address, bool aligned) const {
        Elements<Type, WIDTH> result;
        if (WIDTH == Vector<Type>::size && aligned) {
            const Vector<Type> value = load16(address);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) result.at[k] = value.at[k % Vector<Type>::size];
        } else {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) result.at[k] = address[k];
        }
        return result;
    }

    __device__ __forceinline__ void store(Type* address, const float (&values)[WIDTH], bool aligned) const {
        if (WIDTH == Vector<Type>::size && aligned) {
            Vector<Type> result;
#pragma unroll
            for (int k = 0; k < Vector<Type>::size; ++k) result.at[k] = convert<Type>(values[k % WIDTH]);
            store_whole(address, result);
        } else {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) address[k] = convert<Type>(values[k]);
        }
    }

    // Adds the values of all phases up, in a fixed order; the threads of phase 0 have the sums. All threads call it,
    // those that are not active with zeros. shared: COUNT * WIDTH * THREADS floats.
    template <int COUNT>
    __device__ __forceinline__ void sum(float (&values)[COUNT][WIDTH], float* shared) const {
        for (int left = phases; left > 1;) {
            const int half = (left + 1) / 2;
            // The upper half writes and the lower one reads: a place that was written is never written again.
            if (phase >= half && phase < left)
                each<COUNT>([&](int i, int k) { shared[place(i, k, 0)] = values[i][k]; });
            __syncthreads();
            if (phase + half < left)
                each<COUNT>([&](int i, int k) { values[i][k] += shared[place(i, k, half)]; });
            left = half;
        }
    }

    // Likewise the moments of each column. shared: (2 * WIDTH + 1) * THREADS floats.
    __device__ __forceinline__ void gather(ColumnMoments<WIDTH>& moments, float* shared) const {
        for (int left = phases; left > 1;) {
            const int half = (left + 1) / 2;
            if (phase >= half && phase < left) {
                shared[place(2, 0, 0)] = moments.count;
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    shared[place(0, k, 0)] = moments.mean[k];
                    shared[place(1, k, 0)] = moments.spread[k];
                }
            }
            __syncthreads();
            if (phase + half < left) {
                float mean[WIDTH], spread[WIDTH];
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    mean[k] = shared[place(0, k, half)];
                    spread[k] = shared[place(1, k, half)];
                }
                moments.add(shared[place(2, 0, half)], mean, spread);
            }
            left = half;
        }
    }

private:
    __device__ __forceinline__ int place(int number, int element, int phases_below) const {
        return (number * WIDTH + element) * THREADS + threadIdx.x + phases_below * across;
    }

    template <int COUNT, typename Body>
    __device__ __forceinline__ void each(Body body) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) body(i, k);
    }
};
