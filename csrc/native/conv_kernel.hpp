// The inner loops of convolution for one instruction set. conv_isa.hpp includes this file once for each, in a namespace
// of its own, with LANES (floats in a vector), WIDE and NARROW (rows of a register block that is two vectors or one
// vector wide; OUTER_NARROW for the weight gradient) and TARGET (the attribute that turns the set on) defined.
// Nothing here may call an inline function of a library: the linker could keep the copy compiled for the widest set.

#if LANES > 1
typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef float UnalignedVector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#else
typedef float Vector;
typedef float UnalignedVector;
#endif

TARGET FORCE_INLINE Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
TARGET FORCE_INLINE void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }

// to = zeros, a piece of an image, zeros. Rows are short: calls of the library would cost more than they move.
TARGET static void copy_row(float* to, int64_t before, const float* from, int64_t inside, int64_t after) {
    int64_t i = 0;
    for (; i + LANES <= before; i += LANES) store(to + i, Vector{});
    for (; i < before; ++i) to[i] = 0;
    to += before;
    for (i = 0; i + LANES <= inside; i += LANES) store(to + i, load(from + i));
    for (; i < inside; ++i) to[i] = from[i];
    to += inside;
    for (i = 0; i + LANES <= after; i += LANES) store(to + i, Vector{});
    for (; i < after; ++i) to[i] = 0;
}

TARGET FORCE_INLINE void store_some(float* to, const float* row, int64_t columns) {
    for (int64_t o = 0; o < columns; ++o) to[o] = row[o];
}

// The first `columns` floats of each pixel, one pixel after the other, filled up with zeros to `vectors` vectors.
TARGET static void copy_pixels(float* to, const float* from, const int64_t* offsets, int64_t count, int64_t columns,
                               int vectors) {
    const int64_t whole = columns / LANES;
    for (int64_t i = 0; i < count; ++i, to += vectors * LANES) {
        const float* pixel = from + offsets[i];
        for (int64_t v = 0; v < whole; ++v) store(to + v * LANES, load(pixel + v * LANES));
        if (whole == vectors) continue;
        store(to + whole * LANES, Vector{});
        store_some(to + whole * LANES, pixel + whole * LANES, columns - whole * LANES);
    }
}

// MR pixels by NV vectors of output channels, all sums in registers. Depthwise: output channel o reads input channel o
// alone; otherwise a run of input floats goes to every output channel.
template <int MR, int NV, bool DEPTHWISE>
TARGET FORCE_INLINE void gather_tile(const float* const* pixels, float* const* out, const Runs& runs,
                                     const Panel& panel) {
    Vector sum[MR][NV];
    UNROLL for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) sum[m][v] = panel.bias ? load(panel.bias + v * LANES) : Vector{};
    const float* weight = panel.weight;
    for (int64_t r = 0; r < runs.count; ++r) {
        const float* x[MR];
        UNROLL for (int m = 0; m < MR; ++m) x[m] = pixels[m] + runs.offsets[r];
        for (int64_t k = 0; k < runs.length; ++k, weight += NV * LANES) {
            Vector w0 = load(weight), w1 = load(weight + (NV - 1) * LANES);
            KEEP_IN_REGISTER(w0);
            KEEP_IN_REGISTER(w1);
            UNROLL for (int m = 0; m < MR; ++m) {
                if constexpr (DEPTHWISE) {
                    sum[m][0] += load(x[m]) * w0;
                    if constexpr (NV == 2) sum[m][1] += load(x[m] + LANES) * w1;
                } else {
                    sum[m][0] += x[m][k] * w0;
                    if constexpr (NV == 2) sum[m][1] += x[m][k] * w1;
                }
            }
        }
    }
    UNROLL for (int m = 0; m < MR; ++m) {
        if (panel.columns == NV * LANES) {
            for (int v = 0; v < NV; ++v) store(out[m] + v * LANES, sum[m][v]);
        } else {
            float row[NV * LANES];
            for (int v = 0; v < NV; ++v) store(row + v * LANES, sum[m][v]);
            store_some(out[m], row, panel.columns);
        }
    }
}

// Few output channels, long runs: the vectors lie along the run, and each sum is added up across its lanes at the end.
template <int MR, int COLUMNS>
TARGET FORCE_INLINE void dot_tile(const float* const* pixels, float* const* out, const Runs& runs, const Panel& panel) {
    Vector sum[MR][COLUMNS];
    UNROLL for (int m = 0; m < MR; ++m)
        for (int c = 0; c < COLUMNS; ++c) sum[m][c] = Vector{};
    const float* weight = panel.weight;
    const int64_t whole = runs.length / LANES * LANES;
    for (int64_t r = 0; r < runs.count; ++r) {
        const float* x[MR];
        UNROLL for (int m = 0; m < MR; ++m) x[m] = pixels[m] + runs.offsets[r];
        for (int64_t k = 0; k < whole; k += LANES, weight += COLUMNS * LANES) {
            UNROLL for (int m = 0; m < MR; ++m)
                for (int c = 0; c < COLUMNS; ++c) sum[m][c] += load(x[m] + k) * load(weight + c * LANES);
        }
        if (whole == runs.length) continue;
        for (int m = 0; m < MR; ++m) {
            float rest[LANES] = {};
            store_some(rest, x[m] + whole, runs.length - whole);
            for (int c = 0; c < COLUMNS; ++c) sum[m][c] += load(rest) * load(weight + c * LANES);
        }
        weight += COLUMNS * LANES;
    }
    for (int m = 0; m < MR; ++m)
        for (int c = 0; c < COLUMNS; ++c) {
            float lanes[LANES];
            store(lanes, sum[m][c]);
            UNROLL for (int half = LANES / 2; half > 0; half /= 2)
                for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
            out[m][c] = panel.bias ? lanes[0] + panel.bias[c] : lanes[0];
        }
}

enum Kind { BROADCAST, DEPTHWISE, DOT };

// All pixels of a block in register blocks of MR; the last one repeats a pixel, and the copies go to `spare`.
template <Kind KIND, int MR, int WIDTH>
TARGET static void gather_pixels(const Pixels& pixels, const Runs& runs, const Panel& panel, float* out) {
    const float* from[MR];
    float* to[MR];
    float spare[WIDTH * LANES];
    for (int64_t i = 0; i < pixels.count;) {
        const int64_t left = pixels.count - i, rows = left < MR ? left : MR;
        for (int64_t m = 0; m < MR; ++m) {
            from[m] = pixels.in + pixels.in_offsets[m < rows ? i + m : i];
            to[m] = m < rows ? out + pixels.out_offsets[i + m] : spare;
            for (int v = 0; v <= WIDTH; ++v) PREFETCH_TO_WRITE(to[m] + v * LANES - (v == WIDTH));
        }
        if constexpr (KIND == DOT) dot_tile<MR, WIDTH>(from, to, runs, panel);
        else if (2 * rows <= MR) gather_tile<MR / 2, WIDTH, KIND == DEPTHWISE>(from, to, runs, panel);
        else gather_tile<MR, WIDTH, KIND == DEPTHWISE>(from, to, runs, panel);
        i += rows;
    }
}

TARGET static void gather(const Pixels& pixels, const Runs& runs, const Panel& panel, float* out) {
    if (panel.depthwise) {
        if (panel.vectors == 2) gather_pixels<DEPTHWISE, NARROW, 2>(pixels, runs, panel, out);
        else gather_pixels<DEPTHWISE, NARROW, 1>(pixels, runs, panel, out);
    } else if (panel.vectors == 2) gather_pixels<BROADCAST, WIDE, 2>(pixels, runs, panel, out);
    else gather_pixels<BROADCAST, NARROW, 1>(pixels, runs, panel, out);
}

TARGET static void dot(const Pixels& pixels, const Runs& runs, const Panel& panel, float* out) {
    switch (panel.columns) {
        case 1: return gather_pixels<DOT, 8, 1>(pixels, runs, panel, out);
        case 2: return gather_pixels<DOT, NARROW / 2, 2>(pixels, runs, panel, out);
        case 3: return gather_pixels<DOT, NARROW / 2, 3>(pixels, runs, panel, out);
        default: return gather_pixels<DOT, NARROW / 2, 4>(pixels, runs, panel, out);
    }
}

// sums[m][o] += x[row m] dy[o] over the pixels. CONTIGUOUS: the rows lie one after the other in memory.
template <int MR, int NV, bool CONTIGUOUS, bool DEPTHWISE>
TARGET FORCE_INLINE void outer_tile(const Pixels& pixels, const float* gradient, const int64_t* rows, float* sums) {
    Vector sum[MR][NV];
    UNROLL for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) sum[m][v] = load(sums + (m * NV + v) * LANES);
    int64_t row[MR];
    UNROLL for (int m = 0; m < MR; ++m) row[m] = CONTIGUOUS ? m : rows[m];
    const float* in = CONTIGUOUS ? pixels.in + rows[0] : pixels.in;
    for (int64_t i = 0; i < pixels.count; ++i) {
        const float* x = in + pixels.in_offsets[i];
        const float* dy = gradient + pixels.out_offsets[i];
        Vector d0 = load(dy), d1 = load(dy + (NV - 1) * LANES);
        KEEP_IN_REGISTER(d0);
        KEEP_IN_REGISTER(d1);
        UNROLL for (int m = 0; m < MR; ++m) {
            if constexpr (DEPTHWISE) {
                sum[m][0] += load(x + row[m]) * d0;
                if constexpr (NV == 2) sum[m][1] += load(x + row[m] + LANES) * d1;
            } else {
                sum[m][0] += x[row[m]] * d0;
                if constexpr (NV == 2) sum[m][1] += x[row[m]] * d1;
            }
        }
    }
    UNROLL for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) store(sums + (m * NV + v) * LANES, sum[m][v]);
}

// `rows` and `sums` have MR - 1 entries to spare at their end.
template <int MR, int NV, bool DEPTHWISE>
TARGET static void outer_rows(const Pixels& pixels, const float* dy, const int64_t* rows, int64_t count, float* sums) {
    for (int64_t k = 0; k < count;) {
        float* to = sums + k * NV * LANES;
        if (k + MR <= count && rows[k + MR - 1] - rows[k] == MR - 1) {
            outer_tile<MR, NV, true, DEPTHWISE>(pixels, dy, rows + k, to);
            k += MR;
        } else if (2 * (count - k) > MR) {
            outer_tile<MR, NV, false, DEPTHWISE>(pixels, dy, rows + k, to);
            k += MR;
        } else {
            outer_tile<MR / 2, NV, false, DEPTHWISE>(pixels, dy, rows + k, to);
            k += MR / 2;
        }
    }
}

TARGET static void outer(const Pixels& pixels, const float* dy, const int64_t* rows, int64_t count, int vectors,
                         bool depthwise, float* sums) {
    if (depthwise) {
        if (vectors == 2) outer_rows<WIDE, 2, true>(pixels, dy, rows, count, sums);
        else outer_rows<OUTER_NARROW, 1, true>(pixels, dy, rows, count, sums);
    } else if (vectors == 2) outer_rows<WIDE, 2, false>(pixels, dy, rows, count, sums);
    else outer_rows<OUTER_NARROW, 1, false>(pixels, dy, rows, count, sums);
}

// sums[o] += dy[o] over the pixels; four pixels at a time, since one chain of additions would wait for itself.
TARGET static void column_sums(const Pixels& pixels, const float* dy, int vectors, float* sums) {
    for (int v = 0; v < vectors; ++v) {
        const float* from = dy + v * LANES;
        const int64_t* at = pixels.out_offsets;
        Vector sum[4] = {};
        int64_t i = 0;
        for (; i + 4 <= pixels.count; i += 4)
            UNROLL for (int j = 0; j < 4; ++j) sum[j] += load(from + at[i + j]);
        for (; i < pixels.count; ++i) sum[0] += load(from + at[i]);
        store(sums + v * LANES, load(sums + v * LANES) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
}

#if LANES == 16
// Three kernel columns side by side at stride 1, in 32 registers: an input pixel is broadcast once for the three output
// pixels that it meets, where `gather` loads it for each. Measured: 160 to 190 GFLOP/s with one vector of output
// channels, 175 to 195 with two, on a core with a peak of 212.
TARGET FORCE_INLINE Vector broadcast(float x) {
    Vector all = x - Vector{};
    KEEP_IN_REGISTER(all);
    return all;
}

// MR neighbouring pixels of a row; x is the first, `channels` floats from the next.
template <int MR, int NV>
TARGET FORCE_INLINE void gather_row_tile(const float* x, int64_t channels, float* out, int64_t out_step,
                                         const Runs& runs, const Panel& panel, const char* ahead, int64_t ahead_step) {
    constexpr int THIRDS = (MR + 4) / 3, WIDTH = NV * LANES;
    Vector sum[MR][NV];
    UNROLL for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) sum[m][v] = panel.bias ? load(panel.bias + v * LANES) : Vector{};
    for (int64_t r = 0; r < runs.count; ++r) {
        const float* from[THIRDS];
        UNROLL for (int i = 0; i < THIRDS; ++i) from[i] = x + runs.offsets[r] + 3 * i * channels;
        const float* weight = panel.weight + 3 * r * channels * WIDTH;
        for (int64_t c = 0; c < channels; ++c, weight += WIDTH) {
            Vector w0[NV], w1[NV], w2[NV];
            UNROLL for (int v = 0; v < NV; ++v) {
                w0[v] = load(weight + v * LANES);
                w1[v] = load(weight + channels * WIDTH + v * LANES);
                w2[v] = load(weight + 2 * channels * WIDTH + v * LANES);
                KEEP_IN_REGISTER(w0[v]);
                KEEP_IN_REGISTER(w1[v]);
                KEEP_IN_REGISTER(w2[v]);
            }
            PREFETCH_NEXT_BLOCK(ahead);
            ahead += ahead_step;
            UNROLL for (int m = 0; m < MR + 2; ++m) {
                const Vector pixel = broadcast(from[m / 3][m % 3 * channels]);
                UNROLL for (int v = 0; v < NV; ++v) {
                    if (m < MR) sum[m][v] += pixel * w0[v];
                    if (m >= 1 && m - 1 < MR) sum[m - 1][v] += pixel * w1[v];
                    if (m >= 2) sum[m - 2][v] += pixel * w2[v];
                }
            }
            UNROLL for (int i = 0; i < THIRDS; ++i) {
                ++from[i];
                KEEP_SCALAR(from[i]);
            }
        }
    }
    UNROLL for (int m = 0; m < MR; ++m) {
        if (panel.columns == WIDTH) {
            for (int v = 0; v < NV; ++v) store(out + m * out_step + v * LANES, sum[m][v]);
        } else {
            float row[WIDTH];
            for (int v = 0; v < NV; ++v) store(row + v * LANES, sum[m][v]);
            store_some(out + m * out_step, row, panel.columns);
        }
    }
}

// The last tile of a row moves back and computes some pixels again, to the same values.
template <int MR, int NV>
TARGET static void gather_row_tiles(const Pixels& pixels, int64_t width, const Runs& runs, const Panel& panel,
                                    float* out) {
    const int64_t channels = runs.length / 3, out_step = pixels.out_offsets[1] - pixels.out_offsets[0];
    for (int64_t i = 0; i < pixels.count; i += width)
        for (int64_t q = 0; q < width; q += MR) {
            const int64_t first = i + (q + MR <= width ? q : width - MR);
            for (int m = 0; m < MR; ++m)
                for (int v = 0; v <= NV; ++v)
                    PREFETCH_TO_WRITE(out + pixels.out_offsets[first + m] + v * LANES - (v == NV));
            gather_row_tile<MR, NV>(pixels.in + pixels.in_offsets[first], channels, out + pixels.out_offsets[first],
                                    out_step, runs, panel, pixels.ahead + first * pixels.ahead_bytes,
                                    3 * MR * pixels.ahead_bytes / (runs.count * runs.length));
        }
}

// Tiles of a width that would compute too many pixels twice are left to `gather`.
TARGET static bool gather_rows(const Pixels& pixels, int64_t width, const Runs& runs, const Panel& panel, float* out) {
    const auto fits = [width](int64_t tile) {
        return width >= tile && 10 * ((width + tile - 1) / tile * tile) <= 11 * width;
    };
    if (panel.vectors == 2) {
        if (fits(8)) gather_row_tiles<8, 2>(pixels, width, runs, panel, out);
        else if (fits(7)) gather_row_tiles<7, 2>(pixels, width, runs, panel, out);
        else return false;
    } else {
        if (fits(16)) gather_row_tiles<16, 1>(pixels, width, runs, panel, out);
        else if (fits(14)) gather_row_tiles<14, 1>(pixels, width, runs, panel, out);
        else if (fits(8)) gather_row_tiles<8, 1>(pixels, width, runs, panel, out);
        else return false;
    }
    return true;
}

// sums[t, c][o] += x[q + t][c] dy[q][o] for three columns t and CHANNELS channels, over the pixels q of each row.
template <int CHANNELS, int NV>
TARGET FORCE_INLINE void outer_row_tile(const Pixels& pixels, const float* gradient, int64_t width, int64_t row,
                                        int64_t channels, float* sums) {
    Vector sum[3][CHANNELS][NV], dy[3][NV] = {};
    UNROLL for (int t = 0; t < 3; ++t)
        for (int c = 0; c < CHANNELS; ++c)
            for (int v = 0; v < NV; ++v) sum[t][c][v] = load(sums + ((t * channels + c) * NV + v) * LANES);
    const int64_t dy_step = pixels.out_offsets[1] - pixels.out_offsets[0];
    for (int64_t i = 0; i < pixels.count; i += width) {
        const float* x = pixels.in + pixels.in_offsets[i] + row;
        const float* next = gradient + pixels.out_offsets[i];
        // Input pixel q meets dy of q, q - 1 and q - 2, those that exist.
        const auto step = [&](int first, int last, bool load_next) TARGET {
            UNROLL for (int v = 0; v < NV; ++v) {
                dy[2][v] = dy[1][v];
                dy[1][v] = dy[0][v];
                if (load_next) dy[0][v] = load(next + v * LANES);
            }
            next += dy_step;
            UNROLL for (int c = 0; c < CHANNELS; ++c) {
                const Vector pixel = broadcast(x[c]);
                UNROLL for (int t = 0; t < 3; ++t)
                    for (int v = 0; v < NV; ++v)
                        if (t >= first && t <= last) sum[t][c][v] += pixel * dy[t][v];
            }
            x += channels;
        };
        step(0, 0, true);
        step(0, 1, true);
        for (int64_t q = 2; q < width; ++q) step(0, 2, true);
        step(1, 2, false);
        step(2, 2, false);
    }
    UNROLL for (int t = 0; t < 3; ++t)
        for (int c = 0; c < CHANNELS; ++c)
            for (int v = 0; v < NV; ++v) store(sums + ((t * channels + c) * NV + v) * LANES, sum[t][c][v]);
}

template <int NV>
TARGET static void outer_row_tiles(const Pixels& pixels, const float* dy, int64_t width, const Runs& runs,
                                   float* sums) {
    const int64_t channels = runs.length / 3;
    for (int64_t r = 0; r < runs.count; ++r)
        for (int64_t c = 0; c < channels;) {
            const int64_t row = runs.offsets[r] + c;
            float* to = sums + (r * runs.length + c) * NV * LANES;
            if (channels - c >= 8 / NV) {
                outer_row_tile<8 / NV, NV>(pixels, dy, width, row, channels, to);
                c += 8 / NV;
            } else if (channels - c >= 3) {
                outer_row_tile<3, NV>(pixels, dy, width, row, channels, to);
                c += 3;
            } else {
                outer_row_tile<1, NV>(pixels, dy, width, row, channels, to);
                c += 1;
            }
        }
}

TARGET static bool outer_rows_of_three(const Pixels& pixels, const float* dy, int64_t width, const Runs& runs,
                                       int vectors, float* sums) {
    if (width < 3) return false;
    if (vectors == 2) outer_row_tiles<2>(pixels, dy, width, runs, sums);
    else outer_row_tiles<1>(pixels, dy, width, runs, sums);
    return true;
}
#else
static bool gather_rows(const Pixels&, int64_t, const Runs&, const Panel&, float*) { return false; }
static bool outer_rows_of_three(const Pixels&, const float*, int64_t, const Runs&, int, float*) { return false; }
#endif

static const Kernels kernels = {LANES,       OUTER_NARROW, gather,      dot, outer, gather_rows, outer_rows_of_three,
                                column_sums, copy_row, copy_pixels};

#undef LANES
#undef WIDE
#undef NARROW
#undef OUTER_NARROW
#undef TARGET
