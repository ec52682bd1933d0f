// wgmma: products of a warpgroup, as the PTX ISA describes them ("Asynchronous Warpgroup Level Matrix Instructions").
//
// A product is collected from the 128 threads that start it, and carried out when the first of them waits for its
// group, or at an earlier moment that the seed chooses: so its factors are read late. From the start to the wait the
// sums are here, and the threads' accumulators hold a NaN of our own, which has to be there still when they get the
// sums back.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "conversions.hpp"
#include "detector.hpp"
#include "engine.hpp"

namespace emulator {
namespace {

constexpr unsigned rows = 64, depth_bytes = 32, chunk = 16;
constexpr unsigned most_columns = 256;
constexpr unsigned poison = 0x7f8cacc5;  // a signalling NaN: any arithmetic makes it a quiet one
constexpr const char* multiply_name = "warpgroup_multiply";
constexpr unsigned warpgroup_warps = warpgroup_threads / warp_lanes;
constexpr unsigned all_registers = 65536, most_registers = 256;  // of a multiprocessor; of a thread

// The accumulators of the threads, while products add to them.
struct Sums {
    unsigned registers;
    std::vector<float> values;  // rows x 2 registers
    float* d[warpgroup_threads];
    bool given_back[warpgroup_threads];
    unsigned left;        // threads that have not got them back
    unsigned last_group;  // of the products that add to them
    Site site;            // of the last product
};

struct Product {
    Factor a, b;
    std::vector<const char*> chunks_a, chunks_b;  // where 16 bytes each of the factors lie
    bool a_is_mn_major, b_is_mn_major;
    bool accumulate, done;
    Sums* sums;
    unsigned group;
    const void* place;
};

// What one thread passes to a collective of its warpgroup.
struct Call {
    const char* name;
    Site site;
    Factor a, b;
    bool a_is_mn_major, b_is_mn_major, accumulate;
    unsigned registers;
    unsigned long long descriptor_a, descriptor_b;
    bool is_same(const Call& o) const {
        return name == o.name && same(site, o.site) && a == o.a && b == o.b && a_is_mn_major == o.a_is_mn_major &&
               b_is_mn_major == o.b_is_mn_major && registers == o.registers;
    }
};

// A fence, a commit or a wait, which the threads of a warp execute together.
struct Step {
    const char* name;
    Site site;
    unsigned groups;  // of a wait: how many stay in flight
    bool is_same(const Step& o) const { return name == o.name && same(site, o.site) && groups == o.groups; }
};

struct WarpSteps {
    Step step{};  // where `arrived` lanes are
    unsigned arrived = 0;
    std::size_t done = 0;  // of Warpgroup::steps
};

struct Warpgroup {
    unsigned arrived = 0;
    Call call{};
    float* d[warpgroup_threads];
    unsigned registers = 0;  // of each thread; 0: what the launch gave it
    unsigned wanted = 0;     // while it waits for more: how many there will be
    std::vector<Product> products;  // oldest first
    std::vector<std::unique_ptr<Sums>> sums;
    std::vector<Step> steps;  // that some of its warps have executed since the last product, and not all of them
    WarpSteps warps[warpgroup_warps];
};

Warpgroup warpgroups[most_warpgroups];
unsigned pool = 0;  // registers for each thread of one warpgroup: given back, and not taken
bool is_used = false;

unsigned group_of(const Thread& thread) { return thread.index / warpgroup_threads; }

// Descriptors ------------------------------------------------------------------------------------------------

struct Descriptor {
    unsigned address, panel, group;  // bytes
};

Descriptor decoded(unsigned long long bits, char which, Site site) {
    if (bits >> 62 != 1)
        fault(site, "the descriptor of %c has swizzle mode %llu; only 1, the 128-byte swizzle, has a model", which,
              bits >> 62);
    if (bits & 0x3fffc000c000c000)
        fault(site, "the descriptor of %c, %016llx, has bits that mean nothing, or a base offset, which has no model",
              which, bits);
    return {static_cast<unsigned>(bits & 0x3fff) << 4, static_cast<unsigned>(bits >> 16 & 0x3fff) << 4,
            static_cast<unsigned>(bits >> 32 & 0x3fff) << 4};
}

// Where the factor's 16-byte chunks lie. Major::K: two for each row; Major::MN: `count` / 8 for each step of the depth.
void find_chunks(std::vector<const char*>& chunks, const Descriptor& tile, unsigned count, bool is_mn_major, char which,
                 Site site) {
    const auto add = [&](unsigned offset) {
        const unsigned at = tile.address + offset;
        const char* chunk_at = address_in_window(at ^ (at >> 7 & 7) << 4);
        if (!chunk_at)
            fault(site, "%c reaches out of the block's shared memory, to %u", which, at);
        chunks.push_back(chunk_at);
    };
    if (is_mn_major) {
        for (unsigned k = 0; k < depth_bytes / 2; ++k)
            for (unsigned i = 0; i < count; i += 8)
                add(i / 64 * tile.panel + k / 8 * tile.group + k % 8 * 128 + i % 64 * 2);
    } else {
        for (unsigned i = 0; i < count; ++i)
            for (unsigned part = 0; part < depth_bytes; part += chunk) add(i / 8 * tile.group + i % 8 * 128 + part);
    }
}

// Arithmetic -------------------------------------------------------------------------------------------------

unsigned size_of(Factor factor) {
    if (factor == Factor::tf32) return 4;
    return factor == Factor::e4m3 || factor == Factor::e5m2 ? 1 : 2;
}

// The elements of a chunk as float. tf32 has 10 bits of mantissa: the hardware ignores the rest.
void widen(Factor factor, const char* from, float* to) {
    unsigned char bytes[chunk];
    unsigned short halves[chunk / 2];
    unsigned words[chunk / 4];
    std::memcpy(bytes, from, chunk);
    std::memcpy(halves, from, chunk);
    std::memcpy(words, from, chunk);
    switch (factor) {
        case Factor::float16:
            for (unsigned i = 0; i < 8; ++i) to[i] = float_of_half(halves[i]);
            break;
        case Factor::bfloat16:
            for (unsigned i = 0; i < 8; ++i) to[i] = float_of_bfloat(halves[i]);
            break;
        case Factor::tf32:
            for (unsigned i = 0; i < 4; ++i) to[i] = float_of(words[i] & 0xffffe000u);
            break;
        case Factor::e4m3:
            for (unsigned i = 0; i < 16; ++i) to[i] = float_of_e4m3(bytes[i]);
            break;
        case Factor::e5m2:
            for (unsigned i = 0; i < 16; ++i) to[i] = float_of_e5m2(bytes[i]);
            break;
    }
}

// elements[i * stride_i + k * stride_k] of a factor of `count` rows.
void read_factor(const std::vector<const char*>& chunks, Factor factor, unsigned count, bool is_mn_major,
                 float* elements, unsigned stride_i, unsigned stride_k) {
    const unsigned in_chunk = chunk / size_of(factor);
    float values[chunk];
    auto from = chunks.begin();
    if (is_mn_major) {
        for (unsigned k = 0; k < depth_bytes / 2; ++k)
            for (unsigned i = 0; i < count; i += in_chunk) {
                widen(factor, *from++, values);
                for (unsigned j = 0; j < in_chunk; ++j) elements[(i + j) * stride_i + k * stride_k] = values[j];
            }
    } else {
        for (unsigned i = 0; i < count; ++i)
            for (unsigned k = 0; k < 2 * in_chunk; k += in_chunk) {
                widen(factor, *from++, values);
                for (unsigned j = 0; j < in_chunk; ++j) elements[i * stride_i + (k + j) * stride_k] = values[j];
            }
    }
}

typedef float Lanes __attribute__((vector_size(16)));
constexpr unsigned block_columns = 16;

// Products are exact in float, or nearly so for tf32; the order of the sums, and that each is rounded, is our choice.
void carry_out(Product& product) {
    static float a[rows][depth_bytes], b[depth_bytes][most_columns];
    const unsigned columns = 2 * product.sums->registers, depth = depth_bytes / size_of(product.a);
    read_factor(product.chunks_a, product.a, rows, product.a_is_mn_major, a[0], depth_bytes, 1);
    read_factor(product.chunks_b, product.b, columns, product.b_is_mn_major, b[0], 1, most_columns);
    float* sums = product.sums->values.data();
    for (unsigned row = 0; row < rows; ++row)
        for (unsigned column = 0; column < columns; column += block_columns) {
            Lanes total[block_columns / 4] = {}, factor[block_columns / 4], before[block_columns / 4] = {};
            for (unsigned k = 0; k < depth; ++k) {
                std::memcpy(factor, &b[k][column], sizeof factor);
                for (unsigned i = 0; i < block_columns / 4; ++i) total[i] += a[row][k] * factor[i];
            }
            float* at = sums + row * columns + column;
            if (product.accumulate) std::memcpy(before, at, sizeof before);
            for (unsigned i = 0; i < block_columns / 4; ++i) total[i] += before[i];
            std::memcpy(at, total, sizeof total);
        }
    product.done = true;
}

// Accumulators -----------------------------------------------------------------------------------------------

// Element i of a thread's d.
std::size_t place_of(unsigned thread, unsigned i, unsigned columns) {
    const unsigned row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
    return std::size_t(row) * columns + 8 * (i / 4) + 2 * (thread % 4) + i % 2;
}

void expect_poison(const float* d, unsigned registers, Site site, Site now) {
    for (unsigned i = 0; i < registers; ++i)
        if (bits_of(d[i]) != poison)
            fault(now, "an accumulator was written between warpgroup_multiply at %s:%d and the wait for it", site.file,
                  site.line);
}

void give_back(Sums& sums, unsigned thread, Site site) {
    float* d = sums.d[thread];
    expect_poison(d, sums.registers, sums.site, site);
    for (unsigned i = 0; i < sums.registers; ++i) d[i] = sums.values[place_of(thread, i, 2 * sums.registers)];
    sums.given_back[thread] = true;
    --sums.left;
}

Sums* sums_at(Warpgroup& warpgroup, unsigned thread, const float* d) {
    for (auto& sums : warpgroup.sums)
        if (sums->d[thread] == d && !sums->given_back[thread]) return sums.get();
    return nullptr;
}

// The sums that a product adds to: those of earlier products, or what is in the threads' accumulators.
Sums* take_sums(Warpgroup& warpgroup, const Call& call, unsigned first, Site site) {
    Sums* sums = sums_at(warpgroup, 0, warpgroup.d[0]);
    for (unsigned thread = 1; thread < warpgroup_threads; ++thread)
        if (sums_at(warpgroup, thread, warpgroup.d[thread]) != sums)
            fault(site, "some threads of the warpgroup have waited for their accumulators, and others have not");
    if (sums && sums->registers != call.registers)
        fault(site, "products of %u and of %u columns add to the same accumulators, with no wait in between",
              2 * sums->registers, 2 * call.registers);
    if (sums) return sums;
    if (!launch.current->product_fence)  // all threads have called it together, or none has
        fault(site, "warpgroup_fence() is missing before this product, which adds to accumulators that other code may "
                    "have touched since the last wait");
    warpgroup.sums.push_back(std::make_unique<Sums>());
    sums = warpgroup.sums.back().get();
    sums->registers = call.registers;
    sums->values.resize(std::size_t(rows) * 2 * call.registers);
    sums->left = warpgroup_threads;
    for (unsigned thread = 0; thread < warpgroup_threads; ++thread) {
        float* d = sums->d[thread] = warpgroup.d[thread];
        for (unsigned i = 0; i < call.registers; ++i) {
            if (call.accumulate) sums->values[place_of(thread, i, 2 * call.registers)] = d[i];
            d[i] = float_of(poison);
        }
        launch.threads[first + thread].products_in_flight = true;
    }
    return sums;
}

// Collectives of a warpgroup ---------------------------------------------------------------------------------

unsigned warp_of(const Thread& thread) { return thread.index % warpgroup_threads / warp_lanes; }

Warpgroup& whole_warpgroup(const char* name, Site site) {
    const unsigned number = group_of(*launch.current);
    if ((number + 1) * warpgroup_threads > launch.thread_count)
        fault(site, "%s by a thread of no whole warpgroup: the block has %u threads", name, launch.thread_count);
    is_used = true;
    return warpgroups[number];
}

// A lane of the running thread's warp that has exited, as a thread of the block; -1: there is none.
int exited_lane(unsigned warp) {
    const unsigned exited = ~launch.warps[warp].present;
    return exited ? static_cast<int>(warp * warp_lanes + static_cast<unsigned>(__builtin_ctz(exited))) : -1;
}

[[noreturn]] void diverged(const char* name, Site site, const Step& other, const char* who) {
    fault(site, "divergent %s: %s in %s at %s:%d, and all threads of a warpgroup execute the same one, those of a warp "
                "together",
          name, who, other.name, other.site.file, other.site.line);
}

// Waits until all 128 threads have come to the same call. True in the one that came last.
bool meet(const Call& call, float* d) {
    Warpgroup& warpgroup = whole_warpgroup(call.name, call.site);
    Thread& self = *launch.current;
    const unsigned first = group_of(self) * warpgroup_threads;
    const WarpSteps& warp = warpgroup.warps[warp_of(self)];
    if (warp.arrived) diverged(call.name, call.site, warp.step, "other lanes of the warp wait");
    if (warpgroup.arrived == 0)
        warpgroup.call = call;
    else if (!warpgroup.call.is_same(call))
        fault(call.site, "divergent %s: other threads of the warpgroup wait in %s at %s:%d", call.name,
              warpgroup.call.name, warpgroup.call.site.file, warpgroup.call.site.line);
    else if (warpgroup.call.descriptor_a != call.descriptor_a || warpgroup.call.descriptor_b != call.descriptor_b ||
             warpgroup.call.accumulate != call.accumulate)
        fault(call.site, "the threads of a warpgroup pass different descriptors, or values of `accumulate`");
    warpgroup.d[self.index - first] = d;
    for (unsigned i = first / warp_lanes; i < first / warp_lanes + warpgroup_warps; ++i)
        if (const int exited = exited_lane(i); exited >= 0)
            fault(call.site, "%s waits for thread %d of the block, which has exited", call.name, exited);
    if (++warpgroup.arrived < warpgroup_threads) {
        suspend(call.name, call.site);
        return false;
    }
    warpgroup.arrived = 0;
    if (!warpgroup.steps.empty())
        diverged(call.name, call.site, warpgroup.steps[0], "some warps of the warpgroup, and not all, have been");
    return true;
}

void go_on(const Thread& self) {
    const unsigned first = group_of(self) * warpgroup_threads;
    for (unsigned i = 0; i < warpgroup_threads; ++i)
        if (first + i != self.index) resume(launch.threads[first + i]);
}

// PTX, of wgmma.fence, commit_group and wait_group: .sync makes a thread wait until all of its warp execute the same
// instruction, .aligned demands that all of the warpgroup do. Its warps do not wait for one another, so what one has
// executed is compared when the others come to it.
void execute_together(const Step& step) {
    Warpgroup& warpgroup = whole_warpgroup(step.name, step.site);
    const Thread& self = *launch.current;
    WarpSteps& warp = warpgroup.warps[warp_of(self)];
    const unsigned first = self.index / warp_lanes * warp_lanes;
    if (warp.arrived == 0) {
        for (unsigned i = 0; warpgroup.arrived && i < warp_lanes; ++i)
            if (const Thread& lane = launch.threads[first + i];
                lane.state == State::waiting && lane.waiting_for == warpgroup.call.name)
                diverged(step.name, step.site, {warpgroup.call.name, warpgroup.call.site, 0},
                         "other lanes of the warp wait");
        warp.step = step;
    } else if (!warp.step.is_same(step)) {
        diverged(step.name, step.site, warp.step, "other lanes of the warp wait");
    }
    if (const int exited = exited_lane(first / warp_lanes); exited >= 0)
        fault(step.site, "%s waits for thread %d of the block, which has exited", step.name, exited);
    if (++warp.arrived < warp_lanes) {
        suspend(step.name, step.site);
        return;
    }
    warp.arrived = 0;
    if (warp.done == warpgroup.steps.size())
        warpgroup.steps.push_back(step);
    else if (!warpgroup.steps[warp.done].is_same(step))
        diverged(step.name, step.site, warpgroup.steps[warp.done], "another warp of the warpgroup has been");
    ++warp.done;
    bool by_all = true;
    for (const WarpSteps& each : warpgroup.warps) by_all &= each.done > 0;
    if (by_all) {
        warpgroup.steps.erase(warpgroup.steps.begin());
        for (WarpSteps& each : warpgroup.warps) --each.done;
    }
    for (unsigned i = 0; i < warp_lanes; ++i)
        if (first + i != self.index) resume(launch.threads[first + i]);
}

void start(Warpgroup& warpgroup, const Call& call, unsigned number, const void* place) {
    const unsigned first = number * warpgroup_threads;
    Product product{};
    product.a = call.a, product.b = call.b;
    product.a_is_mn_major = call.a_is_mn_major, product.b_is_mn_major = call.b_is_mn_major;
    product.accumulate = call.accumulate;
    product.group = launch.current->product_groups;
    product.place = place;
    find_chunks(product.chunks_a, decoded(call.descriptor_a, 'a', call.site), rows, call.a_is_mn_major, 'a', call.site);
    find_chunks(product.chunks_b, decoded(call.descriptor_b, 'b', call.site), 2 * call.registers, call.b_is_mn_major,
                'b', call.site);
    if (launch.request.kernel->detector) {
        detector_together(first, warpgroup_threads);
        for (const auto* chunks : {&product.chunks_a, &product.chunks_b})
            for (const char* at : *chunks)
                detector_agent_reads(at, chunk, agent_of_products(number), product.group + 1, "product", place);
        detector_alone();
    }
    product.sums = take_sums(warpgroup, call, first, call.site);
    product.sums->last_group = product.group;
    product.sums->site = call.site;
    warpgroup.products.push_back(std::move(product));
    if (launch.request.seed && random_below(4) == 0)
        for (Product& earlier : warpgroup.products)
            if (!earlier.done) carry_out(earlier);
}

}  // namespace

void reset_products() {
    if (!is_used) return;
    for (Warpgroup& warpgroup : warpgroups) warpgroup = Warpgroup{};
    pool = 0;
    is_used = false;
}

void products_go_on() {
    if (!is_used) return;
    for (unsigned number = 0; number < most_warpgroups; ++number)
        for (const Product& product : warpgroups[number].products)
            for (const auto* chunks : {&product.chunks_a, &product.chunks_b})
                for (const char* at : *chunks)
                    detector_agent_goes_on(at, chunk, agent_of_products(number), product.group + 1, product.place);
}

void check_accumulators(const void* local, std::size_t bytes, const void* place) {
    const Thread& self = *launch.current;
    const unsigned thread = self.index % warpgroup_threads;
    const auto* at = static_cast<const char*>(local);
    for (const auto& sums : warpgroups[group_of(self)].sums) {
        const auto* d = reinterpret_cast<const char*>(sums->d[thread]);
        if (!sums->given_back[thread] && at < d + sums->registers * sizeof(float) && d < at + bytes)
            fail_at(reinterpret_cast<std::uintptr_t>(place), local, 0,
                    "missing warpgroup_wait: this touches an accumulator of the product at %s:%d, which is not done",
                    sums->site.file, sums->site.line);
    }
}

void expect_products_done(const Thread& thread) {
    if (!thread.products_in_flight) return;
    for (const auto& sums : warpgroups[group_of(thread)].sums)
        if (!sums->given_back[thread.index % warpgroup_threads])
            fault(sums->site, "the thread ends, and did not wait for this product");
}

void expect_steps_by_all() {
    if (!is_used) return;
    for (const Warpgroup& warpgroup : warpgroups)
        if (!warpgroup.steps.empty())
            fault(warpgroup.steps[0].site, "the block has ended, and not all warps of the warpgroup have executed this "
                                           "%s, which others have", warpgroup.steps[0].name);
}

unsigned tile_address(const void* tile, Site site) {
    if (!is_shared(tile, 1)) fault(site, "a descriptor of %p, which is not in the block's shared memory", tile);
    if (reinterpret_cast<std::uintptr_t>(tile) % 1024)
        fault(site, "a descriptor of the tile at %u of shared memory, which is no multiple of 1024", window_of(tile));
    return window_of(tile);
}

void warpgroup_fence(Site site) {
    execute_together({"warpgroup_fence", site, 0});
    launch.current->product_fence = true;
}

void warpgroup_multiply(Factor a, Factor b, bool a_is_mn_major, bool b_is_mn_major, float* d, unsigned registers,
                        unsigned long long descriptor_a, unsigned long long descriptor_b, bool accumulate, Site site) {
    const unsigned number = group_of(*launch.current);
    const Call call{multiply_name, site,      a,           b,           a_is_mn_major, b_is_mn_major,
                    accumulate,    registers, descriptor_a, descriptor_b};
    if (!meet(call, d)) return;
    start(warpgroups[number], call, number, __builtin_return_address(0));
    go_on(*launch.current);
}

void warpgroup_commit(Site site) {
    execute_together({"warpgroup_commit", site, 0});
    ++launch.current->product_groups;
}

// Afterwards all but the youngest groups are done, and the accumulators that no younger one adds to are the thread's.
void warpgroup_wait(unsigned groups_in_flight, Site site) {
    execute_together({"warpgroup_wait", site, groups_in_flight});
    Thread& self = *launch.current;
    self.product_fence = false;
    const unsigned number = group_of(self), thread = self.index % warpgroup_threads;
    if (self.product_groups <= groups_in_flight) return;
    const unsigned over = self.product_groups - groups_in_flight;
    Warpgroup& warpgroup = warpgroups[number];
    std::size_t finished = 0;
    for (; finished < warpgroup.products.size() && warpgroup.products[finished].group < over; ++finished)
        if (!warpgroup.products[finished].done) carry_out(warpgroup.products[finished]);
    warpgroup.products.erase(warpgroup.products.begin(),
                             warpgroup.products.begin() + static_cast<std::ptrdiff_t>(finished));
    self.products_in_flight = false;
    for (auto& sums : warpgroup.sums) {
        if (sums->given_back[thread]) continue;
        if (sums->last_group < over)
            give_back(*sums, thread, site);
        else
            self.products_in_flight = true;
    }
    warpgroup.sums.erase(std::remove_if(warpgroup.sums.begin(), warpgroup.sums.end(),
                                        [](const auto& sums) { return sums->left == 0; }),
                         warpgroup.sums.end());
    if (launch.request.kernel->detector) detector_agent_done(agent_of_products(number), over, self.index);
}

// setmaxnreg: the threads of a warpgroup give registers to a pool of their block, and take from it what is there. It is
// empty when the block begins: the hardware has allotted to all threads alike as many as the kernel is compiled for, to
// each warp in units of 256, which is 8 a thread. Under __launch_bounds__(THREADS, 1) ptxas compiles for what a thread
// can have where one block has the multiprocessor: 65536 by the threads, a multiple of 8 and at most 256 (384 threads:
// 168). It compiles for less where no take_registers of the kernel names as many; that is not known here, and such a
// call is refused as one that would give back.
namespace {

unsigned launched_registers() { return std::min(most_registers, all_registers / launch.thread_count / 8 * 8); }

unsigned registers_of(const Warpgroup& warpgroup) {
    return warpgroup.registers ? warpgroup.registers : launched_registers();
}

Call call_for_registers(const char* name, unsigned registers, Site site) {
    return {name, site, {}, {}, false, false, false, registers, 0, 0};
}

// Those who wait go on where the pool has enough for them.
void hand_out() {
    for (unsigned number = 0; number < most_warpgroups; ++number) {
        Warpgroup& warpgroup = warpgroups[number];
        if (!warpgroup.wanted || warpgroup.wanted - registers_of(warpgroup) > pool) continue;
        pool -= warpgroup.wanted - registers_of(warpgroup);
        warpgroup.registers = warpgroup.wanted;
        warpgroup.wanted = 0;
        for (unsigned i = 0; i < warpgroup_threads; ++i) {
            Thread& thread = launch.threads[number * warpgroup_threads + i];
            if (&thread != launch.current) resume(thread);
        }
    }
}

}  // namespace

void give_registers_back(unsigned registers, Site site) {
    if (!meet(call_for_registers("give_registers_back", registers, site), nullptr)) return;
    Warpgroup& warpgroup = warpgroups[group_of(*launch.current)];
    const unsigned before = registers_of(warpgroup);
    if (registers > before)
        fault(site, "give_registers_back<%u>: the threads of this warpgroup have %u registers each, which is fewer",
              registers, before);
    warpgroup.registers = registers;
    pool += before - registers;
    go_on(*launch.current);
    hand_out();
}

void take_registers(unsigned registers, Site site) {
    if (!meet(call_for_registers(take_registers_name, registers, site), nullptr)) return;
    Warpgroup& warpgroup = warpgroups[group_of(*launch.current)];
    if (registers < registers_of(warpgroup))
        fault(site, "take_registers<%u>: the threads of this warpgroup have %u registers each, which is more",
              registers, registers_of(warpgroup));
    warpgroup.wanted = registers;
    hand_out();
    if (warpgroup.wanted) suspend(take_registers_name, site);
}

int describe_registers_wait(char* text, std::size_t size, const Thread& thread) {
    const Warpgroup& warpgroup = warpgroups[group_of(thread)];
    if (!warpgroup.wanted) return 0;  // it waits for the rest of its warpgroup
    return std::snprintf(text, size,
                         ", each of which has %u registers and waits for %u more, and of what other warpgroups gave "
                         "back %u are left",
                         registers_of(warpgroup), warpgroup.wanted - registers_of(warpgroup), pool);
}

}  // namespace emulator
