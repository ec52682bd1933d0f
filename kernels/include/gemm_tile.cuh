// The core of a tiled matrix product: a block of 256 threads computes 64 x 64 elements of C = A B.
//
// A and B pass through shared memory a slice of the depth k at a time, so an element that is fetched from global memory
// is used 64 times; each thread then keeps a micro-tile of 4 x 4 sums in registers, so two 16-byte reads of shared
// memory feed 16 multiply-adds. While a slice is multiplied, the next one is already on its way into registers.
//
// What lies in memory is described by an operand: `operand.load(operand.row(r), c)` gives 16 bytes of elements that
// follow each other, from row r, column c on, and zeros for those beyond the edges. Matrix is one; conv_operands.cuh
// has images. Zeros meet zeros at the end of the depth, and beyond the last row and column they only reach sums that
// are not stored: an infinity in A or B makes no NaN where it does not belong.
#pragma once
#include "indexing.cuh"
#include "vector.cuh"

constexpr int TILE = 64;
constexpr int MICRO = 4;
constexpr int MICROS = TILE / MICRO;  // a row of micro-tiles: threads MICROS * y + x

// With four vectors of 16 bytes a line, each of the 256 threads stages one vector of A and one of B.
template <typename Type>
constexpr int DEPTH = 4 * Vector<Type>::size;

// Slices that are summed before they are added to the total, so that the error grows with the number of runs.
template <typename Type>
constexpr int RUN = 1024 / DEPTH<Type>;

// A slice: tile.a[k][row] and tile.b[k][column]. The padding spreads a column over the banks.
template <typename Type>
struct Tiles {
    alignas(16) float a[DEPTH<Type>][TILE + 4];
    alignas(16) float b[DEPTH<Type>][TILE + 4];
};

struct Micro {
    float at[MICRO][MICRO];
};

// 10 bits of mantissa, to the nearest, ties away from zero, as cvt.rna.tf32 does where it exists (sm_80).
__device__ __forceinline__ float rounded_to_tf32(float x) {
    const uint32 bits = __float_as_uint(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? x : __uint_as_float((bits + 0x1000u) & 0xffffe000u);
}

// An element as it is multiplied.
template <typename Type>
__device__ __forceinline__ float factor(Type x, bool tf32) {
    if constexpr (is_16_bit<Type>::value) return to_float(x);  // tf32 holds it as it is
    return tf32 ? rounded_to_tf32(to_float(x)) : to_float(x);
}

// 16 bytes from `column` on of a line of `columns` elements that begins at `at`, null for one beyond the edge.
template <typename Type>
__device__ __forceinline__ Vector<Type> load_part(const Type* at, int64 column, int64 columns, bool aligned) {
    constexpr int V = Vector<Type>::size;
    if (at != nullptr && aligned && column + V <= columns) return load16(at + column);
    Vector<Type> v;
#pragma unroll
    for (int e = 0; e < V; ++e) v.at[e] = at != nullptr && column + e < columns ? at[column + e] : convert<Type>(0.0f);
    return v;
}

// Elements beside each other where they lie, of which the first `valid` exist. The address is aligned to all of them,
// also where none exists.
template <typename Type>
struct Piece {
    const Type* at;
    int valid;
};

// rows x columns elements, `stride` from one row to the next.
template <typename Type>
struct Matrix {
    typedef const Type* Row;  // null: beyond the last
    typedef int64 Column;

    const Type* at;
    int64 rows, columns, stride;
    bool aligned;

    __device__ __forceinline__ Matrix(const Type* at, int64 rows, int64 columns, int64 stride)
        : at(at), rows(rows), columns(columns), stride(stride),
          aligned(aligned16(at) && stride % Vector<Type>::size == 0) {}

    __device__ __forceinline__ Row row(int64 r) const { return r < rows ? at + r * stride : nullptr; }
    __device__ __forceinline__ Column column(int64 c) const { return c; }

    // The row, the column further on.
    __device__ __forceinline__ void advance_row(Row& row, int by) const {
        row = row != nullptr && at + (rows - by) * stride > row ? row + by * stride : nullptr;
    }
    __device__ __forceinline__ void advance_column(Column& column, int by) const { column += by; }

    // WIDTH elements from `column` on.
    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(Row row, Column column) const {
        const int64 left = columns - column;
        const int valid = left < WIDTH ? static_cast<int>(left < 0 ? 0 : left) : WIDTH;
        return {row + column, row == nullptr ? 0 : valid};
    }

    __device__ __forceinline__ Vector<Type> load(Row row, int64 column) const {
        return load_part(row, column, columns, aligned);
    }
};

// What one thread stages of an operand whose rows run along the depth: A of y = x W^T, and B, which is W.
template <typename Type, bool ALONG_DEPTH, typename Operand>
struct Stage {
    static constexpr int V = Vector<Type>::size;
    const Operand& operand;
    const int line, k;
    const typename Operand::Row row;

    __device__ __forceinline__ Stage(const Operand& operand, int64 first_line)
        : operand(operand), line(threadIdx.x / (DEPTH<Type> / V)), k(threadIdx.x % (DEPTH<Type> / V) * V),
          row(operand.row(first_line + line)) {}

    __device__ __forceinline__ Vector<Type> load(int64 depth) const { return operand.load(row, depth + k); }

    // Transposes: the elements of the vector go to V rows of the tile.
    __device__ __forceinline__ void store(float (*tile)[TILE + 4], const Vector<Type>& v, bool tf32) const {
#pragma unroll
        for (int e = 0; e < V; ++e) tile[k + e][line] = factor(v.at[e], tf32);
    }
};

// The same where the rows run along the lines of the tile, one row for each step of the depth: both of dW = dy^T x.
template <typename Type, typename Operand>
struct Stage<Type, false, Operand> {
    static constexpr int V = Vector<Type>::size;
    const Operand& operand;
    const int k, line;
    const int64 column;

    __device__ __forceinline__ Stage(const Operand& operand, int64 first_line)
        : operand(operand), k(threadIdx.x / (TILE / V)), line(threadIdx.x % (TILE / V) * V),
          column(first_line + line) {}

    __device__ __forceinline__ Vector<Type> load(int64 depth) const {
        return operand.load(operand.row(depth + k), column);
    }

    __device__ __forceinline__ void store(float (*tile)[TILE + 4], const Vector<Type>& v, bool tf32) const {
#pragma unroll
        for (int part = 0; part < V; part += 4) {
            Vector<float> x;
#pragma unroll
            for (int e = 0; e < 4; ++e) x.at[e] = factor(v.at[part + e], tf32);
            store16(&tile[k][line + part], x);
        }
    }
};

// sum = A B over the depth [begin, end), for this thread's micro-tile of the tile at (first_row, first_column).
//
// A_ALONG, B_ALONG: whether the rows of the operand run along the depth. begin is a multiple of DEPTH, and end is one
// or the whole depth of both operands. on_slice() is called for each slice, while it lies in `tiles`.
template <bool A_ALONG, bool B_ALONG, typename Type, typename A, typename B, typename OnSlice>
__device__ __forceinline__ void multiply_tile(const A& a, const B& b, int64 first_row, int64 first_column, int64 begin,
                                              int64 end, bool tf32, Tiles<Type>& tiles, Micro& sum, OnSlice on_slice) {
    const Stage<Type, A_ALONG, A> stage_a(a, first_row);
    const Stage<Type, B_ALONG, B> stage_b(b, first_column);
    const int y = threadIdx.x / MICROS * MICRO, x = threadIdx.x % MICROS * MICRO;
    Micro run = {};
    sum = {};
    int slices = 0;
    Vector<Type> next_a = stage_a.load(begin), next_b = stage_b.load(begin);
    for (int64 depth = begin; depth < end; depth += DEPTH<Type>) {
        stage_a.store(tiles.a, next_a, tf32);
        stage_b.store(tiles.b, next_b, tf32);
        __syncthreads();
        if (depth + DEPTH<Type> < end) {
            next_a = stage_a.load(depth + DEPTH<Type>);
            next_b = stage_b.load(depth + DEPTH<Type>);
        }
#pragma unroll
        for (int k = 0; k < DEPTH<Type>; ++k) {
            const Vector<float> u = load16(&tiles.a[k][y]), v = load16(&tiles.b[k][x]);
#pragma unroll
            for (int i = 0; i < MICRO; ++i)
#pragma unroll
                for (int j = 0; j < MICRO; ++j) run.at[i][j] += u.at[i] * v.at[j];
        }
        on_slice();
        __syncthreads();
        if (++slices % RUN<Type> == 0 || depth + DEPTH<Type> >= end) {
#pragma unroll
            for (int i = 0; i < MICRO; ++i)
#pragma unroll
                for (int j = 0; j < MICRO; ++j) sum.at[i][j] += run.at[i][j];
            run = {};
        }
    }
}

// The sum of one row of A over a slice, in on_slice(): what db is made of.
template <typename Type>
__device__ __forceinline__ float row_sum(const Tiles<Type>& tiles, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < DEPTH<Type>; ++k) sum += tiles.a[k][row];
    return sum;
}

// Calls store(row, column, value) for what this thread's micro-tile holds within `rows` and `columns`.
template <typename Store>
__device__ __forceinline__ void store_tile(const Micro& sum, int64 first_row, int64 first_column, int64 rows,
                                           int64 columns, Store store) {
    const int64 y = first_row + threadIdx.x / MICROS * MICRO, x = first_column + threadIdx.x % MICROS * MICRO;
#pragma unroll
    for (int i = 0; i < MICRO; ++i)
#pragma unroll
        for (int j = 0; j < MICRO; ++j)
            if (y + i < rows && x + j < columns) store(y + i, x + j, sum.at[i][j]);
}

// Where the tile of this block begins: tiles of one row of tiles follow each other, so that they share A in the cache.
struct TilePlace {
    int64 row, column;

    __device__ __forceinline__ explicit TilePlace(int64 columns) {
        const uint32 across = static_cast<uint32>((columns + TILE - 1) / TILE);
        row = static_cast<int64>(blockIdx.x / across) * TILE;
        column = static_cast<int64>(blockIdx.x % across) * TILE;
    }
};
