// A device for tests, out of ordinary memory. Every operation runs on the CPU, but as on a GPU,
// tensors of different devices do not mix, NumPy cannot read it, random numbers are its own, and
// backward runs in a thread of its own. Its memory is counted.
//
// How a device is added: https://docs.pytorch.org/tutorials/advanced/privateuseone.html

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>

namespace second {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;

constexpr DeviceType kind = DeviceType::PrivateUse1;
const Device device(kind, 0);
const c10::DispatchKeySet key(c10::DispatchKey::PrivateUse1);

// ---- Memory

std::atomic<int64_t> bytes_in_use{0};

struct Block {
  void* memory;
  size_t size;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  bytes_in_use -= static_cast<int64_t>(block->size);
  std::free(block->memory);
  delete block;
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, device};
    void* memory = std::malloc(size);
    TORCH_CHECK(memory != nullptr, "no memory left");
    std::memset(memory, 0xFF, size);  // NaN: what is read before it was written shows
    bytes_in_use += static_cast<int64_t>(size);
    return {memory, new Block{memory, size}, &free_block, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }
};

Memory memory;

// ---- Random numbers: those of a CPU generator that stands behind

struct Generator final : c10::GeneratorImpl {
  Generator() : GeneratorImpl(second::device, key) {}
  void set_current_seed(uint64_t seed) override {
    seed_ = seed;
    behind.set_current_seed(~seed);  // the same seed gives other numbers than on the CPU
  }
  uint64_t current_seed() const override { return seed_; }
  uint64_t seed() override { return behind.seed(); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "no offsets"); }
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override {
    behind.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return behind.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override {
    auto* copy = new Generator();
    copy->behind = behind.clone();
    copy->seed_ = seed_;
    return copy;
  }

  at::Generator behind = at::detail::createCPUGenerator();
  uint64_t seed_ = c10::default_rng_seed_val;
};

const at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<Generator>();
  return generator;
}

at::Generator behind(const at::Generator& generator) {
  TORCH_CHECK(generator.device() == device, "Expected a generator of ", device, ", not of ",
              generator.device());
  return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->behind;
}

// ---- What PyTorch asks about the device: there is one, with one stream

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return kind; }
  Device exchangeDevice(Device) const override { return device; }
  Device getDevice() const override { return device; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(Device of) const override { return getStream(of); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(DeviceIndex) const override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(DeviceIndex) const override {
    return at::make_generator<Generator>();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), size);
  }
};

// ---- Operations that work on memory itself

Tensor on_cpu(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  at::AutoDispatchBelowAutograd without_history;
  const auto options = tensor.options().device(at::kCPU).requires_grad(false);
  if (tensor.numel() == 0) return at::empty(tensor.sizes(), options);
  return at::from_blob(
      tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
}

Tensor make_empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                  std::optional<at::Layout>, std::optional<Device>, std::optional<bool>,
                  std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, key, c10::dtype_or_default(dtype), format);
}

Tensor make_strided(c10::IntArrayRef size, c10::IntArrayRef strides,
                    std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                    std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, strides, &memory, key,
                                           c10::dtype_or_default(dtype));
}

Tensor copy_between(const Tensor& from, const Tensor& to, bool) {
  if (to.numel() > 0) on_cpu(to).copy_(on_cpu(from.resolve_conj().resolve_neg()));
  return to;
}

Tensor copy_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_between(from, to, false);
}

at::Scalar one_number(const Tensor& tensor) {
  return at::native::_local_scalar_dense_cpu(on_cpu(tensor));
}

Tensor& use_storage(Tensor& tensor, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / tensor.dtype().itemsize());
  return at::native::set_storage_cpu_(tensor, storage, 0, {count}, {});
}

int64_t plain_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                        double, bool, std::optional<double>, bool) {
  return 0;  // out of products and a softmax
}

// ---- Convolutions, which PyTorch leaves to a device

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                   bool transposed, c10::IntArrayRef output_padding, int64_t groups) {
  const bool has_bias = bias.has_value() && bias->defined();
  TORCH_CHECK(x.device() == weight.device() && (!has_bias || bias->device() == x.device()),
              "Expected input, weight and bias of a convolution on one device");
  const auto b = has_bias ? std::optional<Tensor>(on_cpu(*bias)) : std::nullopt;
  return at::convolution(on_cpu(x), on_cpu(weight), b, stride, padding, dilation, transposed,
                         output_padding, groups)
      .to(device);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
    c10::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  const std::vector<int64_t> bias{transposed ? weight.size(1) * groups : weight.size(0)};
  const auto [dx, dw, db] = at::convolution_backward(
      on_cpu(gradient), on_cpu(x), on_cpu(weight), c10::IntArrayRef(bias), stride, padding,
      dilation, transposed, output_padding, groups, wanted);
  const auto back = [](const Tensor& t) { return t.defined() ? t.to(device) : t; };
  return {back(dx), back(dw), back(db)};
}

// ---- Everything else, by way of the CPU

bool takes_indices(const std::string& name) {  // which CUDA takes from the CPU, too
  return name.find("aten::index") == 0 || name.find("aten::_index_put") == 0;
}

void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const std::string name = c10::toString(op.operator_name());
  std::optional<Device> where;
  const auto check = [&](const Tensor& tensor) {
    const bool may_differ = tensor.is_cpu() && (tensor.dim() == 0 || takes_indices(name));
    if (may_differ) return;
    TORCH_CHECK(!where || *where == tensor.device(), name,
                ": expected all tensors on one device, found ", *where, " and ", tensor.device());
    where = tensor.device();
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = (*stack)[stack->size() - arguments.size() + i];
    const bool may_be_generator =
        arguments[i].type()->repr_str().find("Generator") != std::string::npos;
    if (value.isTensor() && value.toTensor().defined()) {
      check(value.toTensor());
    } else if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) check(tensor);
    } else if (value.isGenerator()) {
      value = behind(value.toGenerator());
    } else if (value.isNone() && may_be_generator) {
      value = behind(default_generator());
    }
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", make_empty);
  library.impl("empty_strided", make_strided);
  library.impl("_copy_from", copy_between);
  library.impl("_copy_from_and_resize", copy_and_resize);
  library.impl("_local_scalar_dense", one_number);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
  library.impl("resize_", at::native::resize_);
  library.impl("set_", at::native::set_cpu_);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("set_.source_Storage", use_storage);
  library.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  library.impl("_fused_sdp_choice", plain_attention);
  library.impl("convolution_overrideable", convolution);
  library.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace second

PYBIND11_MODULE(second_device, module) {
  c10::SetAllocator(second::kind, &second::memory);
  at::RegisterPrivateUse1HooksInterface(new second::Hooks());
  module.def("bytes_in_use", [] { return second::bytes_in_use.load(); });
  module.def("default_generator", [] { return second::default_generator(); });
}
