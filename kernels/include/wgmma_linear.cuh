// A matrix product as the blocks of wgmma_block.cuh take it: the boxes of its two factors, and where C lies.
#pragma once
#include "product.cuh"
#include "wgmma_block.cuh"

// Loads what the product has of both factors.
template <typename Multiply>
struct Factors {
    typedef Work Tile;
    typedef typename Multiply::Shape Shape;

    const TensorMap& a;
    const TensorMap& b;
    const bool several_a, several_b;  // a matrix that all products have in common is a map of one

    __device__ __forceinline__ void prefetch() const {
        prefetch_tensor_map(a);
        prefetch_tensor_map(b);
    }
    __device__ __forceinline__ Tile tile(const Work& work) const { return work; }
    __device__ __forceinline__ void slice(Tile& tile, int slice, unsigned char* tile_a, unsigned char* tile_b,
                                          Barrier& barrier) const {
        const int depth = slice * Multiply::DEPTH;
        load_panels<Multiply::MAJOR_A, Shape::TALL>(tile_a, a, barrier, depth, tile.row, several_a ? tile.item : 0);
        load_panels<Multiply::MAJOR_B, Shape::WIDE>(tile_b, b, barrier, depth, tile.column, several_b ? tile.item : 0);
    }
};

// All threads of a block call. parts, boxes, c: see run_block.
template <typename Multiply, typename Type>
__device__ __forceinline__ void run(const TensorMap& a, const TensorMap& b, const TensorMap& c,
                                    const Epilogue<Type>& epilogue, float* column_sums, const Product& product,
                                    int parts, bool boxes, Pipeline<typename Multiply::Shape>& pipeline,
                                    unsigned char* tiles) {
    const WgmmaProduct of{product.m,       product.n,        product.k,
                          product.batch,   product.part,     parts,
                          product.c_batch, product.c_stride, product.m * product.n,
                          product.n,       0,                1,
                          product.batch * product.m * product.n};
    const Factors<Multiply> factors{a, b, product.a_batch != 0, product.b_batch != 0};
    run_block<Multiply>(factors, c, epilogue, column_sums, of, boxes, pipeline, tiles);
}
