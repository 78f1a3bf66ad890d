// A GPU that is not there: device "cuda" of a torch without CUDA, computed by the CPU's kernels in host memory.
//
// What differs from the CPU is what a GPU is strict about: an operation on tensors in both memories is refused, and what makes the
// host wait for the device is counted. Everything above (autograd, autocast, views, hooks) is torch's own, and takes it for a GPU.
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/extension.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

using at::Tensor;
constexpr c10::DeviceIndex gpus = 8;            // of the machine; each process may touch its own only
const c10::Device gpu(c10::kCUDA, std::getenv("LOCAL_RANK") ? std::atoi(std::getenv("LOCAL_RANK")) : 0);

std::mutex lock;
std::map<std::string, int64_t> waits;           // what the host waited for -> how often
std::map<const char*, size_t> pinned;           // begin -> bytes
std::atomic<bool> refused{false};               // to wait is an error
thread_local int uncounted = 0;

void count(const std::string& what) {
  if (uncounted) return;
  TORCH_CHECK(!refused.load(), "the host waits for the device: ", what);
  std::lock_guard<std::mutex> held(lock);
  ++waits[what];
}

struct Memory : at::Allocator {
  c10::Device where;
  bool pins;
  Memory(c10::Device where, bool pins) : where(where), pins(pins) {}
  static void release(void* context) {
    {
      std::lock_guard<std::mutex> held(lock);
      pinned.erase(static_cast<const char*>(context));
    }
    std::free(context);
  }
  at::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    if (pins && data) {
      std::lock_guard<std::mutex> held(lock);
      pinned[static_cast<const char*>(data)] = bytes;
    }
    return {data, data, &release, where};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory device_memory(gpu, false), pinned_memory(c10::kCPU, true);

struct Guard : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return gpu; }
  c10::Device getDevice() const override { return gpu; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, gpu); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, gpu); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, gpu); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return c10::Stream(c10::Stream::DEFAULT, gpu); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, gpu); }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  c10::DeviceIndex deviceCount() const noexcept override { return gpus; }
};
Guard guard;

struct Hooks : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return gpus; }
  c10::DeviceIndex getCurrentDevice() const override { return gpu.index(); }
  c10::DeviceIndex current_device() const override { return gpu.index(); }
  int getNumGPUs() const override { return gpus; }
  c10::Device getDeviceFromPtr(void*) const override { return gpu; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  at::Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> held(lock);
    auto address = static_cast<const char*>(data);
    auto next = pinned.upper_bound(address);
    return next != pinned.begin() && address < std::prev(next)->first + std::prev(next)->second;
  }
};

// torch made its hooks when it was imported and hands out references to them. They have no members, so ours take their place by
// their table of functions.
void answer_for_cuda() {
  static Hooks hooks;
  auto& torchs = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  std::memcpy(reinterpret_cast<void*>(&torchs), reinterpret_cast<void*>(&hooks), sizeof(void*));
}

// -- between the two memories -----------------------------------------------------------------------------------------

Tensor over(c10::Storage storage, const Tensor& like, c10::DispatchKey key) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

c10::Storage same_bytes(const c10::Storage& storage, c10::Device device, at::Allocator* allocator) {
  auto kept = new c10::Storage(storage);
  at::DataPtr data(const_cast<void*>(storage.data()), kept, [](void* k) { delete static_cast<c10::Storage*>(k); }, device);
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, true);
}

bool on_gpu(const Tensor& t) { return t.defined() && t.device().is_cuda(); }

// The tensor's memory, as a CPU tensor.
Tensor host(const Tensor& t) {
  return on_gpu(t) ? over(same_bytes(t.storage(), c10::kCPU, at::getCPUAllocator()), t, c10::DispatchKey::CPU) : t;
}

struct Call {
  std::vector<Tensor> theirs, ours;     // what came on the GPU, and the same as CPU tensors
  bool on_cpu = false;

  Tensor take(const Tensor& t) {
    if (!t.defined()) return t;
    if (!on_gpu(t)) {
      on_cpu = on_cpu || t.dim() > 0;
      return t;
    }
    theirs.push_back(t);
    ours.push_back(host(t));
    return ours.back();
  }
  c10::IValue convert(const c10::IValue& value) {
    if (value.isTensor()) return take(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(take(t));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        list.push_back(t ? std::optional<Tensor>(take(*t)) : std::nullopt);
      return list;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(c10::kCPU);
    return value;
  }
  // Results that are, or lie in, memory that came in keep its storage.
  Tensor give(const Tensor& result) {
    if (!result.defined()) return result;
    for (size_t i = 0; i < ours.size(); ++i)
      if (result.unsafeGetTensorImpl() == ours[i].unsafeGetTensorImpl()) return theirs[i];
    for (size_t i = 0; i < ours.size(); ++i)
      if (result.storage().data() && result.storage().data() == theirs[i].storage().data())
        return over(theirs[i].storage(), result, c10::DispatchKey::CUDA);
    return over(same_bytes(result.storage(), gpu, &device_memory), result, c10::DispatchKey::CUDA);
  }
  // What was written to may have got another size (out=).
  void settle() {
    for (size_t i = 0; i < ours.size(); ++i) {
      if (ours[i].storage().data() != theirs[i].storage().data())
        theirs[i].unsafeGetTensorImpl()->set_storage_keep_dtype(same_bytes(ours[i].storage(), gpu, &device_memory));
      if (ours[i].sizes() != theirs[i].sizes() || ours[i].strides() != theirs[i].strides())
        theirs[i].unsafeGetTensorImpl()->set_sizes_and_strides(ours[i].sizes(), ours[i].strides(), ours[i].storage_offset());
    }
  }
};

bool takes_both(const std::string& name) {      // indices in host memory are allowed, and sent
  return name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
}

// Whether the size of the result is a number that the device knows first.
bool reads_numbers(const std::string& name, const std::vector<c10::IValue>& args) {
  static const std::set<std::string> always = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::equal", "aten::repeat_interleave", "aten::bincount"};
  if (always.count(name)) return true;
  if (takes_both(name))
    for (const std::optional<Tensor>& t : args[1].toOptionalTensorVector())
      if (t && t->defined() && (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte)) return true;
  return false;
}

void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  auto args = torch::jit::last(*stack, schema.arguments().size()).vec();
  torch::jit::drop(*stack, schema.arguments().size());
  Call call;
  for (const auto& arg : args) stack->push_back(call.convert(arg));
  TORCH_CHECK(!(call.on_cpu && !call.theirs.empty()) || takes_both(schema.name()),
              "Expected all tensors to be on the same device, but found at least two devices, ", gpu, " and cpu! (", schema.name(), ")");
  if (reads_numbers(schema.name(), args)) count(schema.name());
  if (takes_both(schema.name()) && call.on_cpu) count(schema.name() + " by indices of the host");
  at::AutoDispatchBelowADInplaceOrView below;
  op.callBoxed(stack);
  call.settle();
  auto results = torch::jit::last(*stack, schema.returns().size()).vec();
  torch::jit::drop(*stack, schema.returns().size());
  for (const auto& result : results) {
    if (result.isTensor()) {
      stack->push_back(call.give(result.toTensor()));
    } else if (result.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : result.toTensorVector()) list.push_back(call.give(t));
      stack->push_back(list);
    } else {
      stack->push_back(result);
    }
  }
}

// -- operations that make, look at or move memory ------------------------------------------------------------------------

void is_own(std::optional<at::Device> device) {
  TORCH_CHECK(!device || !device->has_index() || *device == gpu, "memory on ", *device, ", but this process has ", gpu);
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  is_own(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  is_own(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &device_memory,
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

Tensor& set_source(Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source) {
  int64_t numbers = source.nbytes() / self.dtype().itemsize();
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(at::IntArrayRef{numbers}, at::IntArrayRef{1}, 0);
  return self;
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(source.storage());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(source.sizes(), source.strides(), source.storage_offset());
  return self;
}

Tensor& copy_(Tensor& self, const Tensor& from, bool non_blocking) {
  bool here = on_gpu(self), there = on_gpu(from);
  if (there && !here && !(non_blocking && self.is_pinned())) count("copy to the host");
  if (here && !there && from.dim() > 0 && from.numel() > 0 && !(non_blocking && from.is_pinned())) count("copy from memory that is not pinned");
  at::AutoDispatchBelowADInplaceOrView below;
  host(self).copy_(host(from));
  return self;
}

at::Scalar local_scalar(const Tensor& self) {
  count("read one number");
  return at::native::_local_scalar_dense_cpu(host(self));
}

int64_t plain_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>,
                        bool) {
  return 0;     // written out in products and a softmax
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_source);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("copy_", &copy_);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("_fused_sdp_choice", &plain_attention);
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }

// -- messages between processes: gloo's, on the same memory ----------------------------------------------------------------

using List = std::vector<Tensor>;
using Lists = std::vector<List>;

List host(List list) {
  for (Tensor& t : list) t = host(t);
  return list;
}
Lists host(Lists lists) {
  for (List& list : lists) list = host(list);
  return lists;
}

struct Messages : c10d::Backend {
  c10::intrusive_ptr<c10d::Backend> gloo;
  explicit Messages(c10::intrusive_ptr<c10d::Backend> gloo) : c10d::Backend(gloo->getRank(), gloo->getSize()), gloo(gloo) {}
  using Work = c10::intrusive_ptr<c10d::Work>;

  // A backend's method takes lists that it may change: these are its own.
  template <class Method, class... Arguments>
  Work by_gloo(Method method, Arguments... arguments) { return (gloo.get()->*method)(arguments...); }

  const std::string getBackendName() const override { return "fake"; }
  bool supportsCoalescing() const override { return false; }
  Work broadcast(List& t, const c10d::BroadcastOptions& o) override { return by_gloo(&Backend::broadcast, host(t), o); }
  Work allreduce(List& t, const c10d::AllreduceOptions& o) override { return by_gloo(&Backend::allreduce, host(t), o); }
  Work allreduce_coalesced(List& t, const c10d::AllreduceCoalescedOptions& o) override {
    return by_gloo(&Backend::allreduce_coalesced, host(t), o);
  }
  Work reduce(List& t, const c10d::ReduceOptions& o) override { return by_gloo(&Backend::reduce, host(t), o); }
  Work allgather(Lists& out, List& in, const c10d::AllgatherOptions& o) override {
    return by_gloo(&Backend::allgather, host(out), host(in), o);
  }
  Work _allgather_base(Tensor& out, Tensor& in, const c10d::AllgatherOptions& o) override {
    return by_gloo(&Backend::_allgather_base, host(out), host(in), o);
  }
  Work allgather_into_tensor_coalesced(List& out, List& in, const c10d::AllgatherOptions& o) override {
    return by_gloo(&Backend::allgather_into_tensor_coalesced, host(out), host(in), o);
  }
  Work gather(Lists& out, List& in, const c10d::GatherOptions& o) override {
    return by_gloo(&Backend::gather, host(out), host(in), o);
  }
  Work scatter(List& out, Lists& in, const c10d::ScatterOptions& o) override {
    return by_gloo(&Backend::scatter, host(out), host(in), o);
  }
  Work reduce_scatter(List& out, Lists& in, const c10d::ReduceScatterOptions& o) override {
    return by_gloo(&Backend::reduce_scatter, host(out), host(in), o);
  }
  Work _reduce_scatter_base(Tensor& out, Tensor& in, const c10d::ReduceScatterOptions& o) override {
    return by_gloo(&Backend::_reduce_scatter_base, host(out), host(in), o);
  }
  Work reduce_scatter_tensor_coalesced(List& out, List& in, const c10d::ReduceScatterOptions& o) override {
    return by_gloo(&Backend::reduce_scatter_tensor_coalesced, host(out), host(in), o);
  }
  Work alltoall_base(Tensor& out, Tensor& in, std::vector<int64_t>& outs, std::vector<int64_t>& ins,
                     const c10d::AllToAllOptions& o) override {
    return by_gloo(&Backend::alltoall_base, host(out), host(in), outs, ins, o);
  }
  Work send(List& t, int to, int tag) override { return by_gloo(&Backend::send, host(t), to, tag); }
  Work recv(List& t, int from, int tag) override { return by_gloo(&Backend::recv, host(t), from, tag); }
  Work barrier(const c10d::BarrierOptions& o) override { return gloo->barrier(o); }
};

}  // namespace

PYBIND11_MODULE(fake_gpu, m) {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::kCUDA)].store(&guard);
  c10::SetAllocator(c10::kCUDA, &device_memory, 255);
  answer_for_cuda();
  m.def("waits", []() { std::lock_guard<std::mutex> held(lock); return waits; });
  m.def("refuse", [](bool on) { refused = on; });
  m.def("forget", []() { std::lock_guard<std::mutex> held(lock); waits.clear(); });
  m.def("count", [](bool on) { uncounted += on ? -1 : 1; });
  py::class_<Messages, c10d::Backend, c10::intrusive_ptr<Messages>>(m, "Messages").def(py::init<c10::intrusive_ptr<c10d::Backend>>());
}
