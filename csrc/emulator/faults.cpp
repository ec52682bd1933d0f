// How a launch ends early: by a report, and a jump back to the function that launched.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#ifdef __APPLE__
#include <sys/ucontext.h>
#else
#include <ucontext.h>
#endif

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <vector>

#include "engine.hpp"

namespace emulator {
namespace {

constexpr int caught_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int caught_count = sizeof caught_signals / sizeof *caught_signals;

struct sigaction previous_actions[caught_count];
stack_t previous_stack;
pthread_t launching_thread;
std::vector<char> signal_stack(64 * 1024);

// Fills in everything but the reason.
Report& describe() {
    Report& report = *launch.report;
    std::memset(&report, 0, sizeof report);
    report.block[0] = blockIdx.x, report.block[1] = blockIdx.y, report.block[2] = blockIdx.z;
    if (launch.current) {
        const uint3 thread = launch.current->coordinates;
        report.thread[0] = thread.x, report.thread[1] = thread.y, report.thread[2] = thread.z;
        report.in_thread = 1;
    }
    return report;
}

[[noreturn]] void leave() { siglongjmp(launch.escape, 1); }

std::uintptr_t program_counter(void* context) {
    auto* user = static_cast<ucontext_t*>(context);
#if defined(__linux__) && defined(__x86_64__)
    return static_cast<std::uintptr_t>(user->uc_mcontext.gregs[REG_RIP]);
#elif defined(__linux__) && defined(__aarch64__)
    return user->uc_mcontext.pc;
#elif defined(__APPLE__) && defined(__aarch64__)
    return user->uc_mcontext->__ss.__pc;
#elif defined(__APPLE__) && defined(__x86_64__)
    return user->uc_mcontext->__ss.__rip;
#else
    (void)user;
    return 0;
#endif
}

// Whether the faulting instruction wrote: known on x86-64 only.
const char* kind_of_access(void* context) {
#if defined(__linux__) && defined(__x86_64__)
    return static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2 ? "write" : "read";
#else
    (void)context;
    return "access";
#endif
}

__attribute__((format(printf, 2, 3))) void say(Report& report, const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(report.reason, sizeof report.reason, format, arguments);
    va_end(arguments);
}

void explain_invalid_access(Report& report, const char* address, const char* kind) {
    report.has_address = 1;
    report.address = reinterpret_cast<std::uintptr_t>(address);
    const Range array = allocation_at(address);
    const unsigned long long begin = array.begin, end = array.end;
    const char* const shared_end = dynamic_shared_end();
    if (launch.fibers.is_guard(address))
        say(report, "stack overflow: a thread has %zu KB for its local variables", FiberPool::stack_bytes / 1024);
    else if (end && report.address >= end)
        say(report, "out-of-bounds %s, %llu bytes past the end of an array of %llu bytes", kind, report.address - end,
            end - begin);
    else if (end && report.address < begin)
        say(report, "out-of-bounds %s, %llu bytes before an array of %llu bytes", kind, begin - report.address,
            end - begin);
    else if (address >= shared_end && address < shared_end + most_dynamic_shared)
        say(report, "out-of-bounds %s, %lld bytes past the end of the %llu bytes of dynamic shared memory", kind,
            static_cast<long long>(address - (launch.dynamic_base + launch.request.shared)), launch.request.shared);
    else
        say(report, "%s of an address in no array, or misaligned for a vector access", kind);
}

void on_signal(int signal, siginfo_t* information, void* context) {
    const bool ours = launch.active && launch.current && pthread_equal(pthread_self(), launching_thread);
    if (!ours) {
        // Another thread of the process: what would have happened without us happens when it comes again.
        for (int i = 0; i < caught_count; ++i)
            if (caught_signals[i] == signal) sigaction(signal, &previous_actions[i], nullptr);
        return;
    }
    Report& report = describe();
    report.has_place = 1;
    locate(program_counter(context), report.places[0]);
    if (signal == SIGSEGV || signal == SIGBUS)
        explain_invalid_access(report, static_cast<const char*>(information->si_addr), kind_of_access(context));
    else if (signal == SIGFPE)
        say(report, "integer division by zero, or its overflow");
    else
        say(report,
            "a trap of the compiler's: a vector at a misaligned address, an index beyond a shared or local array, or "
            "code without a meaning");
    leave();
}

// Whether an address of code is of the unit that runs, and so not amid an allocation or under a lock.
bool is_in_unit(std::uintptr_t place) {
    Dl_info of_place, of_kernel;
    return dladdr(reinterpret_cast<void*>(place), &of_place) &&
           dladdr(reinterpret_cast<void*>(launch.request.kernel->run), &of_kernel) &&
           of_place.dli_fbase == of_kernel.dli_fbase;
}

// The time of the launch is up. It comes again and again until it meets code that can be left; the detector looks too.
void on_timeout(int signal, siginfo_t*, void* context) {
    if (!launch.active) return;
    if (!pthread_equal(pthread_self(), launching_thread)) {
        pthread_kill(launching_thread, signal);
        return;
    }
    launch.overdue = 1;
    const std::uintptr_t place = program_counter(context);
    if (launch.current && is_in_unit(place)) time_is_up(place);
}

// Stays installed: a signal on its way when a launch ends must not meet the default, which ends the process. False
// where the program uses this signal itself.
bool timeout_is_caught() {
    struct sigaction action;
    sigaction(SIGVTALRM, nullptr, &action);
    if (action.sa_sigaction == on_timeout) return true;
    if (action.sa_handler != SIG_DFL) return false;
    std::memset(&action, 0, sizeof action);
    action.sa_sigaction = on_timeout;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGVTALRM, &action, nullptr);
    return true;
}

bool timer_runs = false;

void start_timer(double seconds) {
    launch.overdue = 0;
    timer_runs = seconds > 0 && timeout_is_caught();
    if (!timer_runs) return;
    itimerval timer{};
    timer.it_value.tv_sec = static_cast<time_t>(seconds);
    timer.it_value.tv_usec = static_cast<suseconds_t>((seconds - static_cast<double>(timer.it_value.tv_sec)) * 1e6);
    timer.it_interval.tv_usec = 10000;
    setitimer(ITIMER_VIRTUAL, &timer, nullptr);
}

void stop_timer() {
    const itimerval none{};
    if (timer_runs) setitimer(ITIMER_VIRTUAL, &none, nullptr);
}

}  // namespace

void locate(std::uintptr_t place, Place& result) {
    Dl_info module;
    result.module[0] = 0;
    if (!place || !dladdr(reinterpret_cast<void*>(place), &module) || !module.dli_fname) return;
    std::snprintf(result.module, sizeof result.module, "%s", module.dli_fname);
    result.offset = place - reinterpret_cast<std::uintptr_t>(module.dli_fbase);
}

void time_is_up(std::uintptr_t place) {
    Report& report = describe();
    report.has_place = 1;
    locate(place, report.places[0]);
    say(report,
        "ran for %g seconds of processor time without an end: a loop that waits for ever? BP_EMULATOR_TIMEOUT sets the "
        "limit, 0 for none",
        launch.request.timeout);
    leave();
}

void fault(Site site, const char* format, ...) {
    Report& report = describe();
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(report.reason, sizeof report.reason, format, arguments);
    va_end(arguments);
    std::snprintf(report.file, sizeof report.file, "%s", site.file);
    report.line = site.line;
    leave();
}

void fail(const char* format, ...) {
    Report& report = describe();
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(report.reason, sizeof report.reason, format, arguments);
    va_end(arguments);
    leave();
}

void fail_at(std::uintptr_t place, const void* address, std::uintptr_t other, const char* format, ...) {
    Report& report = describe();
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(report.reason, sizeof report.reason, format, arguments);
    va_end(arguments);
    report.has_address = 1;
    report.address = reinterpret_cast<std::uintptr_t>(address);
    report.has_place = 1;
    // Return addresses: the call stands before them.
    locate(place ? place - 1 : 0, report.places[0]);
    locate(other ? other - 1 : 0, report.places[1]);
    leave();
}

void install_signal_handlers() {
    launching_thread = pthread_self();
    stack_t own{};
    own.ss_sp = signal_stack.data();
    own.ss_size = signal_stack.size();
    sigaltstack(&own, &previous_stack);
    struct sigaction action;
    std::memset(&action, 0, sizeof action);
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < caught_count; ++i) sigaction(caught_signals[i], &action, &previous_actions[i]);
    start_timer(launch.request.timeout);
}

void restore_signal_handlers() {
    stop_timer();
    for (int i = 0; i < caught_count; ++i) sigaction(caught_signals[i], &previous_actions[i], nullptr);
    sigaltstack(&previous_stack, nullptr);
}

}  // namespace emulator
