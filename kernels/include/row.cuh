// A row of a matrix held in registers by a team of threads, so that it is read from memory once however often it is
// used.
#pragma once
#include "moments.cuh"
#include "reduce.cuh"
#include "vector.cuh"

// Hides from the compiler that the vector is what it was. Without it, each element that was converted to float once
// stays in a register of its own until its last use, and a row of 16-bit elements takes twice the registers.
template <typename Type>
__device__ __forceinline__ void stay_packed(Vector<Type>& value) {
#ifndef BP_EMULATOR
    union {
        uint4 words;
        Vector<Type> elements;
    } x;
    x.elements = value;
    asm volatile("" : "+r"(x.words.x), "+r"(x.words.y), "+r"(x.words.z), "+r"(x.words.w));
    value = x.elements;
#endif
}

// Asks for the bytes at the address to be brought into the L2 cache; nothing waits for them and no register holds
// them.
__device__ __forceinline__ void prefetch(const void* address) {
#ifndef BP_EMULATOR
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

// Which columns of a row the thread `rank` of a team of `size` threads holds, in vectors numbered from 0.
//
// VECTORISED: a vector is 16 consecutive bytes, which takes rows that all begin at a multiple of 16 bytes. Otherwise
// its elements are `size` columns apart, so that the team reads neighbouring elements together. Elements beyond the
// row are read as 0 and not written.
template <typename Type, bool VECTORISED, typename Index>
struct Columns {
    static constexpr int V = Vector<Type>::size;
    Index count;
    Index size;
    Index rank;

    __device__ __forceinline__ Index at(Index vector, int element) const {
        return VECTORISED ? (vector * size + rank) * V + element : (vector * V + element) * size + rank;
    }

    // Whether the element lies in the row; all of a vector do, or none, where the row is VECTORISED.
    __device__ __forceinline__ bool has(Index vector, int element) const {
        return at(vector, VECTORISED ? 0 : element) < count;
    }

    __device__ __forceinline__ Vector<Type> load(const Type* row, Index vector) const {
        Vector<Type> value;
        if constexpr (VECTORISED) {
            if (has(vector, 0)) return load16(row + at(vector, 0));
#pragma unroll
            for (int k = 0; k < V; ++k) value.at[k] = convert<Type>(0.0f);
        } else {
#pragma unroll
            for (int k = 0; k < V; ++k)
                value.at[k] = has(vector, k) ? row[at(vector, k)] : convert<Type>(0.0f);
        }
        return value;
    }

    // As load and store, for rows that are VECTORISED by their length, but begin anywhere.
    __device__ __forceinline__ Vector<Type> load(const Type* row, Index vector, bool aligned) const {
        if constexpr (VECTORISED) {
            if (!aligned) {
                Vector<Type> value;
#pragma unroll
                for (int k = 0; k < V; ++k) value.at[k] = has(vector, 0) ? row[at(vector, k)] : convert<Type>(0.0f);
                return value;
            }
        }
        return load(row, vector);
    }

    __device__ __forceinline__ void store(Type* row, Index vector, const Vector<Type>& value, bool aligned) const {
        if constexpr (VECTORISED) {
            if (!aligned) {
#pragma unroll
                for (int k = 0; k < V; ++k)
                    if (has(vector, 0)) row[at(vector, k)] = value.at[k];
                return;
            }
        }
        store(row, vector, value);
    }

    __device__ __forceinline__ void store(Type* row, Index vector, const Vector<Type>& value) const {
        if constexpr (VECTORISED) {
            if (has(vector, 0)) store16(row + at(vector, 0), value);
        } else {
#pragma unroll
            for (int k = 0; k < V; ++k)
                if (has(vector, k)) row[at(vector, k)] = value.at[k];
        }
    }
};

// A power of two of neighbouring lanes of a warp work on a row; a warp has WARP / size rows at a time.
//
// All lanes of the warp call sum() and gather() together, those without a row too.
struct LaneTeam {
    int size;
    int rank;

    __device__ __forceinline__ explicit LaneTeam(int lanes) : size(lanes), rank(threadIdx.x % lanes) {}

    // Of the rows that all teams of the grid take in one step, which one is this team's, and how many there are.
    __device__ __forceinline__ int64 first() const {
        return (static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x) / size;
    }
    __device__ __forceinline__ int64 step() const { return static_cast<int64>(gridDim.x) * blockDim.x / size; }

    // Whether a lane of the warp still has a row, where `row` is this team's: loops with sum() inside run so long.
    __device__ __forceinline__ bool any(int64 row, int64 rows) const {
        return row - threadIdx.x % WARP / size < rows;
    }

    template <int COUNT>
    __device__ __forceinline__ void sum(float (&values)[COUNT]) {
        for (int offset = size / 2; offset > 0; offset /= 2) {
#pragma unroll
            for (int k = 0; k < COUNT; ++k) values[k] += __shfl_xor_sync(ALL_LANES, values[k], offset);
        }
    }

    __device__ __forceinline__ void gather(Moments& own) { own.gather(size); }
};

// The whole block works on a row. scratch: SCRATCH floats of shared memory.
template <int THREADS>
struct BlockTeam {
    static constexpr int MOST = 3;  // numbers that are summed at once
    static constexpr int warps = THREADS / WARP;
    static constexpr int size = THREADS;
    int rank;
    float* scratch;
    int turn = 0;

    __device__ __forceinline__ explicit BlockTeam(float* shared) : rank(threadIdx.x), scratch(shared) {}

    __device__ __forceinline__ int64 first() const { return blockIdx.x; }
    __device__ __forceinline__ int64 step() const { return gridDim.x; }
    __device__ __forceinline__ bool any(int64 row, int64 rows) const { return row < rows; }

    // One barrier each: two halves of the scratch take turns, and whoever writes to one again has passed the barrier
    // of the other, which all threads came to after they had read this one.
    template <int COUNT>
    __device__ __forceinline__ void sum(float (&values)[COUNT]) {
        static_assert(COUNT <= MOST, "the scratch is too small");
        float* const half = take_turns();
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            values[k] = warp_reduce(values[k], Sum());
            if (rank % WARP == 0) half[k * WARP + rank / WARP] = values[k];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            values[k] = half[k * WARP + rank % warps];
#pragma unroll
            for (int offset = warps / 2; offset > 0; offset /= 2)
                values[k] += __shfl_xor_sync(ALL_LANES, values[k], offset);
        }
    }
    __device__ __forceinline__ void gather(Moments& own) {
        float* const half = take_turns();
        own.gather(WARP);
        if (rank % WARP == 0) {
            half[rank / WARP] = own.count;
            half[WARP + rank / WARP] = own.mean;
            half[2 * WARP + rank / WARP] = own.spread;
        }
        __syncthreads();
        own.count = half[rank % warps];
        own.mean = half[WARP + rank % warps];
        own.spread = half[2 * WARP + rank % warps];
        own.gather(warps);
    }

private:
    __device__ __forceinline__ float* take_turns() {
        float* const half = scratch + turn * MOST * WARP;
        turn ^= 1;
        return half;
    }
};

constexpr int SCRATCH = 2 * BlockTeam<WARP>::MOST * WARP;
