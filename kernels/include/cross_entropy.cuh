// Softmax cross-entropy of a row and its gradient: the row is read from memory once, and kept on the chip in between.
//
// The loss -sum_c q_c log p_c with p = softmax(z) needs the largest logit and sum_c e^(z_c - largest) before the first
// gradient p_c sum(q) - q_c can be written. Both come of one pass: where a thread meets a larger logit, it scales the
// sum so far (online softmax: Milakov and Gimelshein, Online normalizer calculation for softmax, 2018). The vectors
// that a thread has read stay in its registers, further ones in its part of shared memory, and what neither holds is
// read again. Every logit is read before its gradient is written, and by the same thread: the gradient may lie in place
// of the logits.
#pragma once
#include "gradient.cuh"
#include "math.cuh"
#include "row.cuh"
#include "row_group.cuh"

template <typename Type>
struct OnlineSoftmax {
    float largest = -INFINITE;  // without NaN, which shows in the sum
    float sum = 0.0f;           // of e^(z - largest)

    // As long as there is nothing but -inf, sums are over e^(z - 0) = 0: -inf - -inf would be NaN.
    __device__ __forceinline__ static float finite(float largest) { return largest == -INFINITE ? 0.0f : largest; }

    template <int COUNT>
    __device__ __forceinline__ void absorb(const Type (&z)[COUNT]) {
        float most = largest;
#pragma unroll
        for (int k = 0; k < COUNT; ++k) most = fmaxf(most, to_float(z[k]));
        const float reference = finite(most);
        sum *= exponential<Type>(largest - reference);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) sum += exponential<Type>(to_float(z[k]) - reference);
        largest = most;
    }

    // That of the whole row, in every thread of its group.
    __device__ __forceinline__ void merge(int lanes, float* scratch) {
        const float most = group_reduce(largest, lanes, scratch, Largest());
        sum = group_reduce(sum * exponential<Type>(largest - finite(most)), lanes, scratch, Total<float>());
        largest = most;
    }
};

// The weights q_c of the log-probabilities -------------------------------------------------------------------------
// of a row. one_class: only that of the label is not 0.

// A label y: w_y [c = y].
struct LabelTarget {
    static constexpr bool one_class = true;
    int label;     // -1 where the row has none
    float weight;  // w_y
};

// A label with smoothing s: (1 - s) w_y [c = y] + s / C w_c.
struct SmoothTarget {
    static constexpr bool one_class = false;
    int label;
    float label_part;    // (1 - s) w_y
    float uniform_part;  // s / C
    const float* class_weight;

    __device__ __forceinline__ float operator()(int column) const {
        const float uniform = class_weight ? uniform_part * class_weight[column] : uniform_part;
        return column == label ? label_part + uniform : uniform;
    }
};

// A distribution t: w_c ((1 - s) t_c + s / C).
template <typename Type>
struct DistributionTarget {
    static constexpr bool one_class = false;
    const Type* row;
    float kept_part;     // 1 - s
    float uniform_part;  // s / C
    const float* class_weight;

    __device__ __forceinline__ float operator()(int column) const {
        const float q = kept_part * to_float(row[column]) + uniform_part;
        return class_weight ? q * class_weight[column] : q;
    }
};

// What a row leaves, and where: null where it is not wanted, as in groups behind the last row.
template <typename Type>
struct RowOutput {
    float* loss;
    Type* gradient;
};

// One row by its group; all groups of the block call, those without a row with mass 0.
//
// KEPT: vectors that a thread keeps in registers. kept_in_shared: those after them, thread by thread side by side.
// mass: sum_c q_c; where it is 0 (an ignored label, no weight) loss and gradient are 0 whatever the logits are.
template <int KEPT, typename Type, typename Target>
__device__ __forceinline__ void cross_entropy_row(const RowGroup& group, const RowVectors<Type, int>& logits,
                                                  const Target& target, float mass, float factor,
                                                  const RowOutput<Type>& output, Vector<Type>* shared,
                                                  int kept_in_shared, float* scratch) {
    constexpr int V = Vector<Type>::size;
    const int lane = group.lane, lanes = group.lanes;
    if (mass == 0.0f && output.gradient) {
        Vector<Type> zero;
#pragma unroll
        for (int k = 0; k < V; ++k) zero.at[k] = convert<Type>(0.0f);
        for (int i = lane; i < logits.count; i += lanes) store16(output.gradient + logits.first(i), zero);
        for (int i = lane; i < logits.edges; i += lanes) output.gradient[logits.edge(i)] = zero.at[0];
    }
    const int count = mass == 0.0f ? 0 : logits.count, edges = mass == 0.0f ? 0 : logits.edges;
    const Type* const vectors = logits.row + logits.head;
    float label_logit = 0.0f;
    if constexpr (Target::one_class) {
        if (mass != 0.0f && target.label >= 0) label_logit = to_float(logits.row[target.label]);
    }

    // From the end of the row to its begin, so that the registers that stay full are filled last.
    OnlineSoftmax<Type> softmax;
    for (int i = lane; i < edges; i += lanes) {
        const Type z[1] = {logits.row[logits.edge(i)]};
        softmax.absorb(z);
    }
    const int after_registers = lane + KEPT * lanes, after_shared = after_registers + kept_in_shared * lanes;
    const int in_shared = after_shared < count ? after_shared : count;
    Vector<Type>* const own = shared + lane - after_registers;
    for (int i = after_shared; i < count; i += lanes) softmax.absorb(load16(vectors + i * V).at);
#pragma unroll 4
    for (int i = after_registers; i < in_shared; i += lanes) {
        const Vector<Type> z = load16(vectors + i * V);
        own[i] = z;
        softmax.absorb(z.at);
    }
    Vector<Type> kept[KEPT];  // all of them are on their way before the first is used
#pragma unroll
    for (int j = 0; j < KEPT; ++j)
        if (lane + j * lanes < count) kept[j] = load16(vectors + (lane + j * lanes) * V);
#pragma unroll
    for (int j = 0; j < KEPT; ++j) {
        if (lane + j * lanes < count) softmax.absorb(kept[j].at);
        stay_packed(kept[j]);
    }

    softmax.merge(lanes, scratch);
    __syncwarp();  // where a group is a part of a warp: all have read the label's logit before its gradient is written
    const float largest = softmax.largest, log_sum = logf(softmax.sum);
    const float probability_scale = __fmul_rn(mass, factor) / softmax.sum;
    float loss = 0.0f;
    if constexpr (Target::one_class) {
        if (output.loss && lane == 0) *output.loss = weighted(target.weight, log_sum - (label_logit - largest));
    }

    // The gradient of a logit; without one_class it adds the term of that class to the loss.
    auto finish = [&](int column, Type z) {
        const float shifted = to_float(z) - largest, gradient = exponential<Type>(shifted) * probability_scale;
        if constexpr (Target::one_class) {
            // The product is rounded, so that it equals the other where the label is the only class.
            return convert<Type>(column == target.label ? gradient - __fmul_rn(target.weight, factor) : gradient);
        } else {
            const float q = target(column);
            loss += weighted(q, log_sum - shifted);
            return convert<Type>(gradient - q * factor);
        }
    };
    auto finish_vector = [&](int i, Vector<Type> z) {
#pragma unroll
        for (int k = 0; k < V; ++k) z.at[k] = finish(logits.first(i) + k, z.at[k]);
        if (output.gradient) store16(output.gradient + logits.first(i), z);
    };
    if (output.gradient || !Target::one_class) {
#pragma unroll
        for (int j = 0; j < KEPT; ++j)
            if (lane + j * lanes < count) finish_vector(lane + j * lanes, kept[j]);
        for (int i = after_registers; i < in_shared; i += lanes) finish_vector(i, own[i]);
        for (int i = after_shared; i < count; i += lanes) finish_vector(i, load16(vectors + i * V));
        for (int i = lane; i < edges; i += lanes) {
            const Type gradient = finish(logits.edge(i), logits.row[logits.edge(i)]);
            if (output.gradient) output.gradient[logits.edge(i)] = gradient;
        }
    }

    if constexpr (!Target::one_class) {
        loss = group_reduce(loss, lanes, scratch, Total<float>());
        if (output.loss && lane == 0) *output.loss = loss;
    }
}

// The row of this group in matrices (rows, classes), with the target that target_of(group, mass) gives for it.
template <int KEPT, typename Type, typename Function>
__device__ __forceinline__ void cross_entropy_of_group(int lanes, const Type* logits, const double* control,
                                                       float* losses, Type* gradients, int64 rows, int64 classes,
                                                       Vector<Type>* shared, int kept_in_shared, float* scratch,
                                                       Function target_of) {
    const RowGroup group(lanes);
    const bool exists = group.row < rows;
    const int64 begin = group.row * classes;
    float mass = 0.0f;
    const auto target = target_of(group, exists, mass);
    const RowOutput<Type> output = {exists ? losses + group.row : nullptr,
                                    exists && gradients ? gradients + begin : nullptr};
    const RowVectors<Type, int> row(logits + begin, static_cast<int>(classes), output.gradient);
    cross_entropy_row<KEPT>(group, row, target, mass, gradient_factor(control), output, shared, kept_in_shared,
                            scratch);
}
