// cp.async: copies from global to shared memory that land when the thread waits for them.
#include <cstring>

#include "detector.hpp"
#include "engine.hpp"

namespace emulator {
namespace {

void land(const PendingCopy& copy) {
    std::memcpy(copy.destination, copy.data, copy.bytes);
    if (launch.request.kernel->detector) detector_copy_landed(copy.destination, copy.bytes);
}

}  // namespace

void async_copy(void* shared, const void* source, unsigned bytes, unsigned valid, Site site) {
    const auto destination_address = reinterpret_cast<std::uintptr_t>(shared);
    const auto source_address = reinterpret_cast<std::uintptr_t>(source);
    if (destination_address % bytes || source_address % bytes)
        fault(site, "cp.async of %u bytes from %p to %p: not both are multiples of %u", bytes, source, shared, bytes);
    if (!is_shared(shared, bytes)) fault(site, "cp.async to %p, which is not in the block's shared memory", shared);
    if (valid > bytes) fault(site, "cp.async of %u bytes takes %u from its source", bytes, valid);
    PendingCopy copy{};
    copy.destination = static_cast<char*>(shared);
    copy.bytes = bytes;
    copy.group = launch.current->copy_groups;
    const void* const place = __builtin_return_address(0);
    const bool detector = launch.request.kernel->detector;
    if (detector) detector_access(Access::read, source, valid, place, false);
    std::memcpy(copy.data, source, valid);
    if (detector) detector_copy_pending(copy.destination, bytes, place);
    launch.current->copies.push_back(copy);
    launch.copies_abandoned = true;  // until the block has waited for all, which nobody checks
}

void async_commit() { ++launch.current->copy_groups; }

// All but the youngest committed groups have landed afterwards.
void async_wait(unsigned groups_in_flight) {
    Thread& thread = *launch.current;
    std::size_t landed = 0;
    while (landed < thread.copies.size() && thread.copies[landed].group + groups_in_flight < thread.copy_groups)
        land(thread.copies[landed++]);
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(landed));
}

}  // namespace emulator
