// Softmax cross-entropy with a distribution as the target of each row; bp/ops/loss.py derives it.
//
// The logits are read once where the row fits into the registers. The targets are read for the sum of a row's weights,
// and again, from a cache unless the row is very long, for loss and gradient.
#include "cross_entropy.cuh"

// Blocks at once are stated where the compiler would otherwise spill registers for more of them.
constexpr int THREADS = 128;
constexpr int BLOCKS = 5;
constexpr int LARGE_THREADS = 512;

struct Distributions {
    const T* targets;
    const float* class_weight;
    int64 classes;
    float smoothing;
    float* scratch;

    // The target of a row, and the sum of its weights.
    __device__ __forceinline__ auto operator()(const RowGroup& group, bool exists, float& mass) const {
        const DistributionTarget<T> target = {targets + group.row * classes, 1.0f - smoothing, smoothing / classes,
                                              class_weight};
        float own = 0.0f;
        if (exists)
            for (int64 c = group.lane; c < classes; c += group.lanes) own += target(static_cast<int>(c));
        mass = group_reduce(own, group.lanes, scratch, Total<float>());
        return target;
    }
};

// Up to 1024 classes: `lanes` threads of a warp a row.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void soft_cross_entropy_by_lanes(
    const T* logits, const T* targets, const float* class_weight, const double* control, float* losses, T* dlogits,
    int64 rows, int64 classes, float smoothing, int gradient, int lanes) {
    constexpr int KEPT = 1024 / WARP / Vector<T>::size;
    cross_entropy_of_group<KEPT>(lanes, logits, control, losses, dlogits, rows, classes,
                                 static_cast<Vector<T>*>(nullptr), 0, nullptr,
                                 Distributions{targets, class_weight, classes, smoothing, nullptr});
}

// More: a large block a row.
extern "C" __global__ __launch_bounds__(LARGE_THREADS, 1) void soft_cross_entropy_by_block(
    const T* logits, const T* targets, const float* class_weight, const double* control, float* losses, T* dlogits,
    int64 rows, int64 classes, float smoothing, int gradient) {
    __shared__ float scratch[WARP];
    cross_entropy_of_group<8>(LARGE_THREADS, logits, control, losses, dlogits, rows, classes,
                              static_cast<Vector<T>*>(nullptr), 0, scratch,
                              Distributions{targets, class_weight, classes, smoothing, scratch});
}
