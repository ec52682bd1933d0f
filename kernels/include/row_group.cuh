// Rows of a matrix at any alignment, each read by a group of threads: part of a warp for short rows, a block for long.
//
// Rows of any length follow each other without a gap, so most of them begin and end within a vector of 16 bytes. The
// vectors within a row are moved by one instruction each, the elements before and behind them one by one.
#pragma once
#include "reduce.cuh"
#include "vector.cuh"

// A thread's place: the row of its group, and which of the group's threads it is. lanes: threads of a group, a power of
// two up to WARP, or all of the block. Groups behind the last row exist too; they take part in reductions.
struct RowGroup {
    int64 row;
    int lane, lanes;

    __device__ __forceinline__ explicit RowGroup(int lanes)
        : row(static_cast<int64>(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes),
          lane(threadIdx.x % lanes),
          lanes(lanes) {}
};

template <typename Value>
__device__ __forceinline__ Value shuffle_xor(Value x, int offset) {
    return __shfl_xor_sync(ALL_LANES, x, offset);
}

// The combination of x over the threads of a group, in all of them. Every thread of the block calls. scratch: WARP
// values of shared memory, which may be used again right after the call; null where lanes are at most a warp.
// combine.neutral() changes nothing.
template <typename Value, typename Operation>
__device__ __forceinline__ Value group_reduce(Value x, int lanes, Value* scratch, Operation combine) {
    for (int offset = (lanes < WARP ? lanes : WARP) / 2; offset > 0; offset /= 2)
        x = combine(x, shuffle_xor(x, offset));
    if (lanes <= WARP) return x;
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    if (lane == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = lane < warps ? scratch[lane] : combine.neutral();
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = combine(x, shuffle_xor(x, offset));
    __syncthreads();
    return x;
}

template <typename Value>
struct Total {
    __device__ __forceinline__ Value neutral() const { return Value(0); }
    __device__ __forceinline__ Value operator()(Value a, Value b) const { return a + b; }
};

// NaN wins.
struct Largest {
    __device__ __forceinline__ float neutral() const { return -INFINITE; }
    __device__ __forceinline__ float operator()(float a, float b) const { return a != a || a > b ? a : b; }
};

// A row as whole vectors of 16 bytes, and the elements before and behind them: edges, numbered through. Index: int
// where rows have fewer than 2^31 columns.
template <typename Type, typename Index = int64>
struct RowVectors {
    static constexpr int V = Vector<Type>::size;
    const Type* row;
    Index head;   // elements before the first whole vector
    Index count;  // whole vectors
    Index edges;  // elements before and behind them

    // beside: another row that is read or written with this one; where its vectors lie elsewhere, there are edges only.
    __device__ __forceinline__ RowVectors(const Type* row, Index columns, const Type* beside = nullptr) : row(row) {
        const int begin = static_cast<int>(reinterpret_cast<uint64>(row) & 15);
        const bool together = !beside || ((reinterpret_cast<uint64>(row) ^ reinterpret_cast<uint64>(beside)) & 15) == 0;
        head = (16 - begin) % 16 / static_cast<int>(sizeof(Type));
        if (head > columns || !together) head = columns;
        count = (columns - head) / V;
        edges = columns - count * V;
    }

    // The first column of a vector; the column of an edge.
    __device__ __forceinline__ Index first(Index vector) const { return head + vector * V; }
    __device__ __forceinline__ Index edge(Index number) const { return number < head ? number : number + count * V; }
};

// Calls body(column, value) for each element of the row, over the threads of the group.
template <typename Type, typename Index, typename Body>
__device__ __forceinline__ void for_row(const RowVectors<Type, Index>& vectors, const RowGroup& group, Body body) {
    for (Index i = group.lane; i < vectors.count; i += group.lanes) {
        const Vector<Type> v = load16(vectors.row + vectors.first(i));
#pragma unroll
        for (int k = 0; k < Vector<Type>::size; ++k) body(vectors.first(i) + k, to_float(v.at[k]));
    }
    for (Index i = group.lane; i < vectors.edges; i += group.lanes)
        body(vectors.edge(i), to_float(vectors.row[vectors.edge(i)]));
}

// y[column] = body(column, x) for each element x of the row, which y was given to be read beside, likewise.
template <typename Type, typename Index, typename Body>
__device__ __forceinline__ void map_row(const RowVectors<Type, Index>& vectors, Type* y, const RowGroup& group,
                                        Body body) {
    for (Index i = group.lane; i < vectors.count; i += group.lanes) {
        Vector<Type> v = load16(vectors.row + vectors.first(i));
#pragma unroll
        for (int k = 0; k < Vector<Type>::size; ++k)
            v.at[k] = convert<Type>(body(vectors.first(i) + k, to_float(v.at[k])));
        store16(y + vectors.first(i), v);
    }
    for (Index i = group.lane; i < vectors.edges; i += group.lanes) {
        const Index column = vectors.edge(i);
        y[column] = convert<Type>(body(column, to_float(vectors.row[column])));
    }
}
