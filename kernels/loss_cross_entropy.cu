// Softmax cross-entropy with labels: losses and, where wanted, gradients in one launch; bp/ops/loss.py derives them.
//
// The logits are read once and the gradient written once: (1 + gradient) * rows * classes * T bytes, up to 50,304
// classes in any type on any GPU (what does not fit is read twice). Three kernels differ in who works on a row.
// `gradient` says whether dlogits is wanted, which is null where not; the count of bytes takes it from there.
// SMOOTHING is 1 where label smoothing gives every class a weight: it takes registers that the others do better with.
#include "cross_entropy.cuh"
#include "label.cuh"
#include "shared.cuh"

constexpr int THREADS = 128;
constexpr int BLOCKS = 5;  // at once, at least: the compiler would spill registers for more
constexpr int LARGE_THREADS = 512;

// Registers of a thread for its part of the row: 32 of at most 64, so that two large blocks share a multiprocessor and
// one computes while the other's loads are on their way; for float 72 of at most 128, in one block. The rest of 50,304
// columns takes 40 KiB of shared memory in 16 bits and 56 KiB in float; a GPU of sm_75 has 64.
constexpr int LARGE_KEPT = sizeof(T) == 2 ? 8 : 18;
constexpr int LARGE_BLOCKS = sizeof(T) == 2 && !SMOOTHING ? 2 : 1;

// What a launch is about, in one bundle.
struct Labels {
    const void* labels;
    int type;
    const float* class_weight;
    int64 classes, ignore_index;
    float smoothing;
    float* scratch;

    // The target of a row, and the sum of its weights, which is 0 where nothing counts.
    __device__ __forceinline__ auto operator()(const RowGroup& group, bool exists, float& mass) const {
        const int64 label = exists ? read_label(labels, group.row, type) : ignore_index;
        const bool counts = exists && label != ignore_index;
        const float weight = counts ? weight_of(label, classes, class_weight) : 0.0f;
        const int known = names_class(label, classes) ? static_cast<int>(label) : -1;
#if SMOOTHING
        float mean_weight = 1.0f;
        if (class_weight) {
            float total = 0.0f;
            for (int64 c = group.lane; c < classes; c += group.lanes) total += class_weight[c];
            mean_weight = group_reduce(total, group.lanes, scratch, Total<float>()) / classes;
        }
        mass = counts ? (1.0f - smoothing) * weight + smoothing * mean_weight : 0.0f;
        // A label of no class has the weight NaN, and makes all others so.
        return SmoothTarget{known, (1.0f - smoothing) * weight, weight == weight ? smoothing / classes : weight,
                            class_weight};
#else
        mass = weight;
        return LabelTarget{known, weight};
#endif
    }
};

// Up to 1024 classes: `lanes` threads of a warp a row, so the only exchange is by shuffles.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void softmax_cross_entropy_by_lanes(
    const T* logits, const void* labels, int label_type, const float* class_weight, const double* control,
    float* losses, T* dlogits, int64 rows, int64 classes, int64 ignore_index, float smoothing, int gradient,
    int lanes) {
    constexpr int KEPT = 1024 / WARP / Vector<T>::size;
    cross_entropy_of_group<KEPT>(
        lanes, logits, control, losses, dlogits, rows, classes, static_cast<Vector<T>*>(nullptr), 0, nullptr,
        Labels{labels, label_type, class_weight, classes, ignore_index, smoothing, nullptr});
}

// Up to 4096 classes in float, 8192 in 16 bits: a small block a row.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void softmax_cross_entropy_by_block(
    const T* logits, const void* labels, int label_type, const float* class_weight, const double* control,
    float* losses, T* dlogits, int64 rows, int64 classes, int64 ignore_index, float smoothing, int gradient) {
    __shared__ float scratch[WARP];
    cross_entropy_of_group<8>(
        THREADS, logits, control, losses, dlogits, rows, classes, static_cast<Vector<T>*>(nullptr), 0, scratch,
        Labels{labels, label_type, class_weight, classes, ignore_index, smoothing, scratch});
}

// More: a large block a row, which keeps `kept_in_shared` vectors a thread in shared memory.
extern "C" __global__ __launch_bounds__(LARGE_THREADS, LARGE_BLOCKS) void softmax_cross_entropy_by_large_block(
    const T* logits, const void* labels, int label_type, const float* class_weight, const double* control,
    float* losses, T* dlogits, int64 rows, int64 classes, int64 ignore_index, float smoothing, int gradient,
    int kept_in_shared) {
    __shared__ float scratch[WARP];
    DYNAMIC_SHARED(Vector<T>, shared);
    cross_entropy_of_group<LARGE_KEPT>(
        LARGE_THREADS, logits, control, losses, dlogits, rows, classes, shared, kept_in_shared, scratch,
        Labels{labels, label_type, class_weight, classes, ignore_index, smoothing, scratch});
}
